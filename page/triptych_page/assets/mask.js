"use strict";
// Draws a mask over the picture to start from. Resolves to what Gradio's picture field holds: the new mask, or the one before.
async function drawMask(picture, before) {
  if (!picture) return before;
  const easel = await new Easel().open(picture.url, before?.url);
  const file = await easel.drawn;
  if (!file) return before;
  const form = new FormData();
  form.append("files", file, "mask.png");
  const [path] = await (await ask("upload", { method: "POST", body: form })).json();
  return { path, url: address(`file=${path}`), orig_name: "mask.png", mime_type: "image/png", meta: { _type: "gradio.FileData" } };
}

const EASEL = `<p id="tp-easel-words">Paint over what is to be drawn anew. By keyboard: arrow keys move the brush, the space
 bar paints.</p><div class="tp-easel-sheet"><img alt="The picture to start from"><canvas tabindex="0" role="application"
 aria-label="The mask" aria-describedby="tp-easel-words"></canvas><i class="tp-brush"></i></div>
<div class="tp-easel-tools"><label>Brush <input type="range" min="1" max="50" value="12"></label>
<label><input type="checkbox"> Erase</label><button type="button" data-deed="undo">Undo</button>
<button type="button" data-deed="clear">Clear</button><button type="button" data-deed="invert">Invert</button><span></span>
<button type="button" data-deed="close">Cancel</button><button type="button" data-deed="use">Use this mask</button></div>`;

class Easel {
  constructor() {
    this.dialog = Object.assign(document.createElement("dialog"), { id: "tp-easel", innerHTML: EASEL });
    this.dialog.setAttribute("aria-label", "Draw the mask");
    this.canvas = this.dialog.querySelector("canvas");
    this.brush = this.dialog.querySelector(".tp-brush");
    [this.size, this.erase] = this.dialog.querySelectorAll("input");
    this.steps = [];
    this.drawn = new Promise((resolve) => (this.resolve = resolve));
  }

  async open(url, maskUrl) {
    const picture = this.dialog.querySelector("img");
    picture.src = url;
    await picture.decode();
    Object.assign(this.canvas, { width: picture.naturalWidth, height: picture.naturalHeight });
    this.pen = this.canvas.getContext("2d", { willReadFrequently: true });
    this.at = [this.canvas.width / 2, this.canvas.height / 2];
    if (maskUrl) await this.take(maskUrl);
    this.listen();
    document.querySelector(".gradio-container").append(this.dialog);
    this.dialog.showModal();
    this.canvas.focus();
    this.move(this.at);
    return this;
  }

  listen() {
    const { canvas, dialog } = this;
    let painting = false;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      painting = true;
      this.keep();
      this.paint(this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => (painting ? this.paint(this.place(event)) : this.move(this.place(event))));
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (painting = false));
    canvas.addEventListener("keydown", (event) => this.key(event));
    this.size.addEventListener("input", () => this.move(this.at));
    dialog.addEventListener("click", (event) => {
      const deed = event.target.dataset.deed;
      if (deed) this[deed]();
    });
    dialog.addEventListener("close", () => {
      this.resolve(null);
      dialog.remove();
    });
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key !== " " && !ways[event.key]) return;
    event.preventDefault();
    if (event.key === " ") {
      this.keep();
      this.paint(this.at);
      return;
    }
    const [x, y] = ways[event.key].map((way, k) => this.at[k] + (way * this.width) / 2);
    this.move([Math.min(Math.max(x, 0), this.canvas.width), Math.min(Math.max(y, 0), this.canvas.height)]);
  }

  // Of the brush, in the picture's pixels.
  get width() {
    return (Math.min(this.canvas.width, this.canvas.height) * this.size.value) / 100;
  }
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  }
  move(to) {
    this.at = to;
    const scale = this.canvas.getBoundingClientRect().width / this.canvas.width;
    const [left, top] = to.map((side) => `${side * scale}px`);
    Object.assign(this.brush.style, { left, top, width: `${this.width * scale}px`, height: `${this.width * scale}px` });
    this.last = null;
  }
  paint(to) {
    const from = this.last ?? to;
    const { pen } = this;
    Object.assign(pen, { lineWidth: this.width, lineCap: "round", strokeStyle: "#f59e0b" });
    pen.globalCompositeOperation = this.erase.checked ? "destination-out" : "source-over";
    pen.beginPath();
    pen.moveTo(...from);
    pen.lineTo(to[0] + 0.01, to[1]); // a line of no length is not drawn
    pen.stroke();
    this.move(to);
    this.last = to;
  }

  keep() {
    this.last = null;
    this.steps.push(this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height));
    if (this.steps.length > 20) this.steps.shift();
  }
  undo() {
    if (this.steps.length) this.pen.putImageData(this.steps.pop(), 0, 0);
  }
  clear() {
    this.keep();
    this.pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
  }
  invert() {
    this.keep();
    this.fill(this.pen, "source-out", "#f59e0b");
  }
  close() {
    this.dialog.close();
  }
  fill(pen, how, colour) {
    Object.assign(pen, { globalCompositeOperation: how, fillStyle: colour });
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
  }
  // Goes on with a mask that is there: what is white of it is painted.
  async take(url) {
    const mask = Object.assign(new Image(), { src: url });
    await mask.decode();
    this.pen.drawImage(mask, 0, 0, this.canvas.width, this.canvas.height);
    const sheet = this.pen.getImageData(0, 0, this.canvas.width, this.canvas.height);
    for (let k = 0; k < sheet.data.length; k += 4) sheet.data[k + 3] = sheet.data[k] > 127 ? sheet.data[k + 3] : 0;
    this.pen.putImageData(sheet, 0, 0);
    this.fill(this.pen, "source-in", "#f59e0b");
  }
  // White where it is painted, black elsewhere.
  use() {
    this.fill(this.pen, "source-in", "#fff");
    this.fill(this.pen, "destination-over", "#000");
    this.canvas.toBlob((file) => {
      this.resolve(file);
      this.dialog.close();
    }, "image/png");
  }
}
