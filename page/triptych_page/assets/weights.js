// Names with a weight each, of a component of Gradio's: `element` is its place, `props.value` what is picked, `props.names`
// what there is with words on each. Rows are made anew only when others are picked: one that a hand is on stays.
const list = element.querySelector("ul");
const add = element.querySelector("select");
const none = element.querySelector("p");
const rows = () => props.value ?? [];
let drawn = "";

function set(value) {
  props.value = value;
  drawn = drawable();
  trigger("input");
}
// All that is seen of the list but the weights of those who are being weighed.
function drawable() {
  return JSON.stringify(rows().map((one) => [one, props.names[one.name]]));
}
function made(tag, properties, ...children) {
  const one = Object.assign(document.createElement(tag), properties);
  one.append(...children);
  return one;
}
function row(one) {
  const told = props.names[one.name];
  const inputs = ["range", "number"].map((type) => {
    const limits = { type, min: props.low, max: props.high, step: 0.05, value: one.scale };
    const words = type === "range" ? "Weight of" : "Number for the weight of";
    return made("input", { ...limits, ariaLabel: `${words} ${one.name}` });
  });
  const keep = (input, what) => {
    if (input.value === "") return false;
    one = { ...one, [what]: Number(input.value) };
    set(rows().map((each) => (each.name === one.name ? one : each)));
    return true;
  };
  const share = () => (one.scale - props.low) / (props.high - props.low);
  inputs[0].style.setProperty("--share", share());
  for (const input of inputs) {
    input.addEventListener("input", () => {
      if (!keep(input, "scale")) return;
      inputs[0].style.setProperty("--share", share());
      for (const other of inputs) if (other !== input) other.value = input.value;
    });
  }
  const remove = made("button", { type: "button", textContent: "✕", ariaLabel: `Remove ${one.name}` });
  remove.addEventListener("click", () => {
    set(rows().filter((each) => each.name !== one.name));
    draw(true);
    add.focus();
  });
  const words = made("small", { textContent: told ?? "Not on this server" });
  const parts = [made("span", {}, made("b", { textContent: one.name }), words), ...inputs, remove];
  if (props.spans) parts.push(span(one, keep));
  return made("li", {}, ...parts);
}
// The share of the steps in which one works.
function span(one, keep) {
  const ends = ["start", "end"].map((what) => {
    const limits = { type: "number", min: 0, max: 1, step: 0.05, value: one[what] };
    const input = made("input", { ...limits, ariaLabel: `${what === "start" ? "Start" : "End"} of ${one.name}` });
    input.addEventListener("input", () => keep(input, what));
    return input;
  });
  return made("small", { className: "tp-span" }, "from", ends[0], "to", ends[1], "of the steps");
}
function draw(anew) {
  const names = rows().map((one) => one.name);
  const free = Object.keys(props.names).filter((name) => !names.includes(name));
  const options = free.map((name) => made("option", { value: name, textContent: name, title: props.names[name] }));
  add.replaceChildren(made("option", { value: "", textContent: "Add …" }), ...options);
  add.disabled = !free.length || names.length >= props.most;
  none.textContent = free.length + names.length ? "" : props.none;
  if (anew || drawable() !== drawn) list.replaceChildren(...rows().map(row));
  drawn = drawable();
}
add.addEventListener("change", () => {
  set([...rows(), { name: add.value, scale: 1, ...(props.spans && { start: 0, end: 1 }) }]);
  draw(true);
  list.lastElementChild.querySelector("input").focus();
});
// Who comes near is about to look what there is by now.
let asked = 0;
for (const sign of ["pointerenter", "focusin"]) {
  element.addEventListener(sign, () => {
    if (performance.now() - asked < 2000) return;
    asked = performance.now();
    trigger("focus");
  });
}
watch(["value", "names"], () => draw(false));
draw(true);
