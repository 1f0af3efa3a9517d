"use strict";
// Live mode: every change of the form is drawn at once. What comes of it takes the place of what was there once it can be
// seen, so that nothing flickers.
let liveOn = false, liveLook = "";
document.addEventListener("click", (event) => {
  if (event.target.closest("#tp-generate")) delete document.body.dataset.live;
});
function redraw() {
  if (liveOn) document.querySelector("#tp-redraw")?.click();
}
function switchLive(on) {
  liveOn = on;
  // What was drawn before is out of the way until Generate is pressed.
  if (on) document.body.dataset.live = "alone";
  else delete document.body.dataset.live;
  if (on) redraw();
  else ask("stop?picture=live", { method: "POST" });
  showLive(null);
}
function showLive(now) {
  const place = document.getElementById("tp-live");
  if (!place) return;
  if (!liveOn) {
    place.hidden = true;
    liveLook = "";
    return;
  }
  if (!now) return;
  document.getElementById("tp-live-words").textContent = now.words;
  const bar = place.querySelector("progress");
  bar.hidden = !now.busy;
  if (now.step) Object.assign(bar, { max: now.total, value: now.step });
  else bar.removeAttribute("value");
  place.dataset.state = now.busy ? "busy" : now.done ? "done" : "ended";
  if (now.look && now.look !== liveLook) showLook(place, now.look, now.done);
}
async function showLook(place, look, done) {
  liveLook = look;
  const before = place.querySelector("img");
  const next = Object.assign(new Image(), { alt: before.alt, src: address(`live?look=${look}`) });
  try {
    await next.decode();
  } catch {
    return; // it is gone: a newer one comes
  }
  if (liveLook !== look) return;
  place.querySelector("img").replaceWith(next);
  place.dataset.shown = done ? "done" : "under way";
  place.hidden = false;
}
