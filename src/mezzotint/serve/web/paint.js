// A mask painted over the picture: white is drawn anew, black stays. Mouse, finger, pen, or arrow keys and Space.

import { $ } from "./dom.js";

const VEIL = "rgba(220, 40, 60, 0.55)";
let mask, veil, image, past, use, at;

export function paint(source, painted) {
  image = source;
  use = painted;
  const canvas = $("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  $("brush").max = String(Math.max(canvas.width, canvas.height) / 2);
  $("brush").value = String(Math.max(4, Math.round(canvas.width / 8)));
  mask = blank();
  veil = blank();
  past = [];
  at = [canvas.width / 2, canvas.height / 2];
  draw();
  $("painter").showModal();
  canvas.style.width = `${Math.min(innerWidth * 0.85, Math.max(canvas.width, 384))}px`;
}

function blank() {
  return Object.assign(document.createElement("canvas"), { width: $("canvas").width, height: $("canvas").height }).getContext("2d", { willReadFrequently: true });
}

function draw(cursor = false) {
  const canvas = $("canvas"), context = canvas.getContext("2d");
  veil.globalCompositeOperation = "copy";
  veil.drawImage(mask.canvas, 0, 0);
  veil.globalCompositeOperation = "source-in";
  veil.fillStyle = VEIL;
  veil.fillRect(0, 0, canvas.width, canvas.height);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(image, 0, 0);
  context.drawImage(veil.canvas, 0, 0);
  if (cursor) {
    context.beginPath();
    context.arc(...at, $("brush").value / 2, 0, 7);
    context.strokeStyle = "#fff";
    context.stroke();
  }
}

const keep = () => past.push(mask.getImageData(0, 0, mask.canvas.width, mask.canvas.height));

function stroke(from, to) {
  mask.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
  mask.strokeStyle = "#fff";
  mask.lineCap = mask.lineJoin = "round";
  mask.lineWidth = Number($("brush").value);
  mask.beginPath();
  mask.moveTo(...from);
  mask.lineTo(to[0] + 0.01, to[1]);
  mask.stroke();
}

function point(event) {
  const box = $("canvas").getBoundingClientRect();
  return [((event.clientX - box.left) * $("canvas").width) / box.width, ((event.clientY - box.top) * $("canvas").height) / box.height];
}

async function done() {
  const opaque = blank();
  opaque.fillRect(0, 0, opaque.canvas.width, opaque.canvas.height);
  opaque.drawImage(mask.canvas, 0, 0);
  const blob = await new Promise((resolve) => opaque.canvas.toBlob(resolve, "image/png"));
  const pixels = mask.getImageData(0, 0, mask.canvas.width, mask.canvas.height).data;
  let painted = 0;
  for (let i = 3; i < pixels.length; i += 4) painted += pixels[i] > 127;
  $("painter").close();
  use(blob, painted / (pixels.length / 4));
}

export function listen() {
  const canvas = $("canvas");
  let last = null;
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    keep();
    last = point(event);
    stroke(last, last);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = point(event);
    stroke(last, next);
    last = next;
    draw();
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => (last = null));
  canvas.addEventListener("keydown", (event) => {
    const step = Math.max(1, $("brush").value / 3);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key === " ") {
      keep();
      stroke(at, at);
    } else if (moves[event.key]) {
      at = [Math.min(canvas.width, Math.max(0, at[0] + moves[event.key][0])), Math.min(canvas.height, Math.max(0, at[1] + moves[event.key][1]))];
    } else return;
    event.preventDefault();
    draw(true);
  });
  $("undo").addEventListener("click", () => { if (past.length) mask.putImageData(past.pop(), 0, 0); draw(); });
  $("clear").addEventListener("click", () => { keep(); mask.clearRect(0, 0, canvas.width, canvas.height); draw(); });
  $("invert").addEventListener("click", () => {
    keep();
    mask.globalCompositeOperation = "xor";
    mask.fillStyle = "#fff";
    mask.fillRect(0, 0, canvas.width, canvas.height);
    draw();
  });
  $("painted").addEventListener("click", done);
}
