// The noise levels that a picture walks down, as a curve with a dot where it stands. The height is the share of noise,
// sigma^2 / (1 + sigma^2): 1 is nothing but noise, 0 nothing but picture.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 360, HEIGHT = 100, LEFT = 8, TOP = 10, BOTTOM = 18;

const share = (sigma) => sigma ** 2 / (1 + sigma ** 2);
const x = (i, sigmas) => LEFT + ((WIDTH - 2 * LEFT) * i) / Math.max(1, sigmas.length - 1);
const y = (sigma) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - share(sigma));

function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

export function curve(sigmas) {
  const svg = node("svg", { class: "curve", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "xMinYMid meet" });
  const title = node("title", {}, "Noise level over the steps");
  const line = sigmas.map((sigma, i) => `${i ? "L" : "M"}${x(i, sigmas).toFixed(1)} ${y(sigma).toFixed(1)}`).join("");
  const dot = node("circle", { r: 5, cx: x(0, sigmas), cy: y(sigmas[0]) });
  svg.append(
    title,
    node("line", { x1: LEFT, x2: WIDTH - LEFT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    node("path", { d: line }),
    dot,
    node("text", { x: LEFT, y: HEIGHT - 4 }, sigmas[0] > sigmas.at(-1) ? "noise" : "picture"),
    node("text", { x: WIDTH - LEFT, y: HEIGHT - 4, "text-anchor": "end" }, sigmas[0] > sigmas.at(-1) ? "picture" : "noise"),
  );
  svg.moveTo = (i) => {
    const at = Math.min(i, sigmas.length - 1);
    dot.setAttribute("cx", x(at, sigmas));
    dot.setAttribute("cy", y(sigmas[at]));
    title.textContent = `Noise level over the steps: at ${at} of ${sigmas.length - 1}`;
  };
  return svg;
}
