"use strict";
// Ctrl+Enter begins, wherever the cursor is; Escape is left to Gradio's own dialogs.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  const button = document.querySelector("#tp-generate");
  if (!button || button.disabled) return;
  event.preventDefault();
  // A box tells its value when it loses the focus.
  document.activeElement?.blur();
  setTimeout(() => button.click(), 50);
});

// Light or dark as chosen here, else as the system has it.
const THEME = "triptych-theme";
function chosenTheme() {
  try {
    return localStorage.getItem(THEME);
  } catch {
    return null;
  }
}
function applyTheme() {
  const dark = chosenTheme() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.body.classList.toggle("dark", dark === "dark");
}
document.addEventListener("click", (event) => {
  if (!event.target.closest("#tp-theme")) return;
  const dark = document.body.classList.contains("dark");
  try {
    localStorage.setItem(THEME, dark ? "light" : "dark");
  } catch {
    document.body.classList.toggle("dark", !dark);
    return;
  }
  applyTheme();
});

// Gradio makes the places for words after the page has loaded; a screen reader must know those that change.
function announce() {
  for (const id of ["tp-news", "tp-banner"]) {
    const place = document.getElementById(id);
    if (place && !place.hasAttribute("aria-live")) {
      place.setAttribute("role", "status");
      place.setAttribute("aria-live", "polite");
    }
  }
  // Nor does it name the button that each of two compared pictures is.
  // It has one button within another where pictures are added to others; only the inner one does something.
  for (const outer of document.querySelectorAll("button:has(button)")) {
    outer.setAttribute("role", "group");
    outer.tabIndex = -1;
  }
  for (const button of document.querySelectorAll("#tp-a button:not([aria-label]), #tp-b button:not([aria-label])")) {
    button.setAttribute("aria-label", button.closest("#tp-a") ? "Picture A" : "Picture B");
  }
}
function begin() {
  announce();
  new MutationObserver(announce).observe(document.body, { childList: true, subtree: true });
  if (chosenTheme()) applyTheme();
  // Gradio sets the class by the system's wish when it is done, which may be after us.
  new MutationObserver(() => {
    const chosen = chosenTheme();
    if (chosen && document.body.classList.contains("dark") !== (chosen === "dark")) applyTheme();
  }).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}
// Gradio may put this script in after the page was read.
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", begin);
else begin();

// What this page's server answers itself, beside Gradio's events.
function address(what) {
  return `${window.gradio_config.root}/gradio_api/${what}`;
}
function ask(what, options) {
  return fetch(address(what), options);
}

// Asks in a few bytes whether there is news, and only then the way that Gradio's events go, which costs far more.
const LIVE_MS = 30, BUSY_MS = 500, IDLE_MS = 1500;
let newsTold = {}, nextLook, asking = false, askAgain = false;
async function lookForNews() {
  if (asking) {
    askAgain = true;
    return;
  }
  asking = true;
  clearTimeout(nextLook);
  let now = {};
  try {
    // A live page waits there for another look.
    const answer = await ask(liveOn ? `news?look=${liveLook}` : "news");
    if (answer.ok) now = await answer.json();
  } catch {
    // The page's server is away: all is looked at when it is back.
  }
  if (now.busy || (now.seen && now.seen !== newsTold.seen)) lookNow();
  if (now.forms && now.forms !== newsTold.forms) document.querySelector("#tp-look-for-forms")?.click();
  showLive(now.live);
  newsTold = now;
  asking = false;
  const pause = liveOn && now.live?.busy ? LIVE_MS : now.busy ? BUSY_MS : IDLE_MS;
  nextLook = setTimeout(lookForNews, askAgain ? 0 : pause);
  askAgain = false;
}
function lookNow() {
  document.querySelector("#tp-look")?.click();
}
function beginToLook() {
  newsTold = {};
  lookForNews();
}

document.addEventListener("click", async (event) => {
  const picture = event.target.closest(".tp-stop-one")?.dataset.picture;
  if (!picture) return;
  await ask(`stop?picture=${encodeURIComponent(picture)}`, { method: "POST" });
  lookForNews();
});
function archive(favourites) {
  const link = document.createElement("a");
  link.href = address(favourites ? "zip?favourites" : "zip");
  link.download = "";
  link.click();
}
