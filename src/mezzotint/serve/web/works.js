// "How it works": films with a slider, forward from the reader's picture and backward from noise.

import { $, el, level, say, trouble } from "./dom.js";
import { json, webp } from "./api.js";
import { curve } from "./curve.js";

const BEAT = 180; // milliseconds of a frame

// A film in `place`: `panels` are captions, each frame has as many pictures and a level.
function film(place, panels, frames, levels) {
  const images = panels.map((caption) => el("img", { alt: caption }));
  const graph = curve(levels);
  const told = el("p", { class: "help" });
  const slider = el("input", { type: "range", min: "0", max: String(frames.length - 1), value: "0", "aria-label": "Moment" });
  const play = el("button", { type: "button" }, "Play");
  let timer = null;

  function to(i) {
    slider.value = i;
    frames[i].pictures.forEach((picture, k) => (images[k].src = webp(picture)));
    graph.moveTo(i);
    told.textContent = `${i} of ${frames.length - 1}: ${level(levels[i])}`;
    slider.setAttribute("aria-valuetext", told.textContent);
    frames[i].also?.();
  }
  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Stop";
    if (Number(slider.value) === frames.length - 1) to(0);
    timer = setInterval(() => (Number(slider.value) < frames.length - 1 ? to(Number(slider.value) + 1) : stop()), BEAT);
  });
  slider.addEventListener("input", () => { stop(); to(Number(slider.value)); });
  place.replaceChildren(
    el("div", { class: "panels" }, ...panels.map((caption, k) => el("figure", {}, images[k], el("figcaption", {}, caption)))),
    el("div", { class: "row" }, play, slider), told, graph,
  );
  to(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) play.click();
}

export async function forward(blob) {
  $("forward-film").replaceChildren(el("p", { class: "help" }, "One moment …"));
  try {
    const { frames } = await json("/api/forward", { method: "POST", body: blob });
    trouble();
    film($("forward-film"), ["your picture, as the model sees it"], frames.map((one) => ({ pictures: [one.picture] })), frames.map((one) => one.sigma));
    say("The film of your picture is ready.");
  } catch (error) {
    $("forward-film").replaceChildren();
    trouble(error.message);
  }
}

async function reverse(event) {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  $("words").replaceChildren();
  $("reverse-film").replaceChildren(el("p", { class: "help" }, "It is being drawn …"));
  try {
    const request = { prompt: $("reverse-prompt").value, seed: Number($("reverse-seed").value) };
    const told = await json("/api/reverse", { method: "POST", json: request });
    trouble();
    const maps = told.words.map((word) => el("img", { alt: `Where “${word}” was looked up` }));
    $("words").replaceChildren(...told.words.map((word, k) => el("figure", {}, maps[k], el("figcaption", {}, word))));
    const frames = told.frames.map((one) => ({
      pictures: [one.state, one.belief],
      also: () => one.attention.forEach((map, k) => (maps[k].src = webp(map))),
    }));
    film($("reverse-film"), ["the state, decoded", "what the model believes"], frames, told.frames.map((one) => one.sigma));
    say("The film is ready.");
  } catch (error) {
    $("reverse-film").replaceChildren();
    trouble(error.message);
  } finally {
    button.disabled = false;
  }
}

export function listen() {
  $("forward-file").addEventListener("change", (event) => event.target.files[0] && forward(event.target.files[0]));
  $("reverse-form").addEventListener("submit", reverse);
}
