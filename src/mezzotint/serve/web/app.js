// The page: asks for pictures, shows them on their way, keeps a gallery, and says what goes wrong.

import { $, el, level, say, trouble, words } from "./dom.js";
import { address, base64, call, events, json, key, png } from "./api.js";
import { curve } from "./curve.js";
import * as form from "./form.js";
import * as painter from "./paint.js";
import * as works from "./works.js";

const RETRY = 2000; // milliseconds between looks for a server that went away
const PAGE = 48; // pictures of the gallery at a time
let oldest = null;
const running = new Map(); // job -> its card

// Drawing

async function draw(request) {
  if (!request.prompt && !request.image) {
    $("prompt").focus();
    return trouble("Say what the picture should show.");
  }
  $("draw").disabled = true;
  try {
    const job = await json("/api/jobs", { method: "POST", json: request });
    trouble();
    follow(job, true);
  } catch (error) {
    failed(error);
  } finally {
    $("draw").disabled = false;
  }
}

function failed(error) {
  if (error.status === 401) return askForKey();
  if (error.status === 0) return waitForServer(error.message);
  const wait = error.wait ? ` Try again in ${error.wait} s.` : "";
  trouble(error.message.replace(/^./, (letter) => letter.toUpperCase()) + (error.message.endsWith(".") ? "" : ".") + wait);
}

// A card for a job, kept up to date until it ends.
async function follow(job, show = false) {
  if (running.has(job.id)) return;
  const count = job.request.num_images;
  const frames = Array.from({ length: count }, (_, i) => frame(job, i));
  const state = el("p", { class: "state" }, "Waiting …");
  const cancel = el("button", { type: "button", onclick: () => stop(job.id) }, "Cancel");
  const card = el("article", { class: "job", "aria-label": job.request.prompt || words(job.request.task) },
    el("header", {}, el("h3", {}, job.request.prompt || words(job.request.task)), cancel),
    state,
    el("div", { class: count === 1 ? "frames one" : "frames" }, ...frames.map((one) => one.figure)));
  running.set(job.id, card);
  $("jobs").querySelector(".empty")?.remove();
  $("jobs").prepend(card);
  if (show) card.scrollIntoView({ block: "nearest" });
  const query = new URLSearchParams({ model: job.model, grid: job.request.grid, steps: job.request.num_inference_steps });
  let graph = null;
  json(`/api/levels?${query}`).then(({ sigmas }) => { if (running.has(job.id)) card.append((graph = curve(sigmas))); }, () => {});
  say(`Drawing ${job.request.prompt}`);
  for (;;) {
    try {
      for await (const { event, data } of events(`/api/jobs/${job.id}/events?previews=true`)) {
        if (event === "state")
          state.textContent = data.state === "running" ? "Drawing …" : data.ahead ? `Waiting: ${data.ahead} pictures are ahead` : "Waiting …";
        else if (event === "step" && data.step) {
          frames[data.number].step(data);
          graph?.moveTo(data.step);
          state.textContent = `Step ${data.step} of ${data.steps}, ${level(data.sigma)}`;
        } else if (event === "preview") frames[data.number].preview(data);
        else if (event === "picture") await frames[data.number].done(data);
        else if (event === "end") return ended(job, data, card, state, cancel, graph);
      }
    } catch (error) {
      if (error.status !== 0) {
        state.textContent = error.message;
        cancel.remove();
        running.delete(job.id);
        return failed(error);
      }
    }
    state.textContent = "The connection was lost; the job goes on as soon as the server is back.";
    await waitForServer("The server went away. Jobs that it had accepted go on when it is back.");
  }
}

function frame(job, number) {
  const image = el("img", { alt: `On its way: ${job.request.prompt}` });
  const blank = el("div", { class: "blank" });
  const bar = el("progress", { max: 1, value: 0, "aria-label": `Picture ${number + 1}` });
  const caption = el("figcaption", {}, `seed ${job.request.seed + number}`);
  image.hidden = true;
  const showing = (source) => { image.src = source; image.hidden = false; blank.remove(); };
  return {
    figure: el("figure", { "data-number": String(number) }, blank, image, bar, caption),
    step: (data) => { bar.max = data.steps; bar.value = data.step; },
    preview: (data) => { image.dataset.preview = String(data.step); showing(png(data.png)); },
    done: async (data) => {
      showing(await address(`/api/jobs/${job.id}/pictures/${number}.png`));
      image.alt = job.request.prompt;
      image.dataset.done = "true";
      bar.remove();
    },
  };
}

async function ended(job, data, card, state, cancel, graph) {
  cancel.remove();
  graph?.remove();
  running.delete(job.id);
  card.querySelectorAll("progress").forEach((bar) => bar.remove());
  const told = { done: "Done.", cancelled: "Cancelled.", blocked: "Not drawn", expired: "It took too long", failed: "It went wrong" }[data.state] ?? data.state;
  state.textContent = ["done", "cancelled"].includes(data.state) ? told : `${told}: ${data.error}`;
  state.classList.toggle("failed", !["done", "cancelled"].includes(data.state));
  say(state.textContent);
  await fresh();
  if (data.state === "done") setTimeout(() => { card.remove(); empty(); }, 4000);
}

function empty() {
  if (!$("jobs").children.length)
    $("jobs").append(el("p", { class: "empty" }, "What you ask for appears here while it is found in the noise."));
}

async function stop(job) {
  try {
    await call(`/api/jobs/${job}/cancel`, { method: "POST" });
  } catch (error) {
    failed(error);
  }
}

// Gallery

async function fresh() {
  const cards = await json(`/api/pictures?limit=${PAGE}`).catch(() => null);
  if (!cards) return;
  const there = new Set([...$("gallery").children].map((item) => item.dataset.url));
  for (const made of cards.reverse()) if (!there.has(made.url)) $("gallery").prepend(await card(made));
  if (oldest === null) {
    oldest = cards[0]?.created ?? 0;
    $("older").hidden = cards.length < PAGE;
  }
}

async function older() {
  const cards = await json(`/api/pictures?limit=${PAGE}&before=${oldest}`);
  for (const made of cards) $("gallery").append(await card(made));
  oldest = cards.at(-1)?.created ?? oldest;
  $("older").hidden = cards.length < PAGE;
}

const name = (made) => made.recipe.prompt || words(made.recipe.task);

async function card(made) {
  const image = el("img", { alt: name(made), loading: "lazy", src: await address(made.url) });
  return el("li", { "data-url": made.url },
    el("button", { type: "button", class: "open", onclick: () => view(made) }, image),
    el("p", {}, name(made)), el("div", { class: "row" }, ...actions(made, ["again", "vary", "edit"])));
}

function actions(made, which) {
  const all = {
    again: ["Make again", async () => draw(await recipeRequest(made))],
    vary: ["Vary", () => vary(made)],
    edit: ["Edit", () => edit(made)],
    knobs: ["Use its knobs", () => { form.fill(made.recipe); back(); }],
    works: ["How it came about", () => how(made)],
    remove: ["Delete", () => remove(made)],
  };
  const has = (action) => action !== "edit" || Object.values(info.tasks).some((task) => task.fields.includes("image"));
  return which.filter(has).map((action) => el("button", { type: "button", "aria-label": `${all[action][0]}: ${name(made)}`, onclick: all[action][1] }, all[action][0]));
}

// What makes a picture again: the fields of its recipe, and the pictures that its job was given.
async function recipeRequest(made) {
  const request = {};
  for (const field of Object.keys(info.request.properties)) {
    const value = made.recipe[field];
    if (value === undefined || value === null) continue;
    request[field] = value.sha256 && !Array.isArray(value) ? await base64(await blobOf(`/api/jobs/${made.job}/inputs/${field}`)) : value;
  }
  if (made.recipe.model in info.models) request.model = made.recipe.model;
  return request;
}

const blobOf = async (url) => (await call(url)).blob();

async function vary(made) {
  $("viewer").close();
  const request = await recipeRequest(made);
  if (info.tasks.vary && made.recipe.task === "text2img") {
    form.pick(await blobOf(made.url));
    form.choose("vary");
    return draw(await form.asked());
  }
  delete request.seed;
  return draw(request);
}

async function edit(made) {
  form.pick(await blobOf(made.url));
  form.fill({ ...made.recipe, task: info.tasks.inpaint ? "inpaint" : "img2img", seed: undefined, width: null, height: null });
  back();
  $("drop").scrollIntoView({ block: "center" });
}

function back() {
  $("viewer").close();
  tab("draw");
  $("prompt").focus();
}

async function remove(made) {
  const others = [...$("gallery").children].filter((item) => item.dataset.url.includes(made.job)).length;
  if (!confirm(others > 1 ? `Delete all ${others} pictures of this job?` : "Delete this picture?")) return;
  try {
    await call(`/api/jobs/${made.job}`, { method: "DELETE" });
    [...$("gallery").children].filter((item) => item.dataset.url.includes(made.job)).forEach((item) => item.remove());
    $("viewer").close();
    say("Deleted.");
  } catch (error) {
    failed(error);
  }
}

function how(made) {
  $("viewer").close();
  $("reverse-prompt").value = made.recipe.prompt;
  $("reverse-seed").value = made.recipe.seed;
  tab("works");
  $("reverse-form").requestSubmit();
}

// One picture, large, with its recipe

async function view(made) {
  const source = await address(made.url);
  $("viewer-title").textContent = name(made);
  $("viewer-picture").replaceChildren(el("img", { src: source, alt: name(made) }));
  const download = el("a", { class: "button", href: source, download: `${name(made).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60)}-${made.seed}.png` }, "Download");
  $("viewer-actions").replaceChildren(...actions(made, ["again", "vary", "edit", "knobs", "works", "remove"]), download);
  recipe(made.recipe);
  if (made.recipe.image) compare(made, source);
  if (!$("viewer").open) $("viewer").showModal();
}

function recipe(told) {
  const flat = { ...told, loras: form.listed(told.loras), embeddings: form.listed(told.embeddings) };
  const shown = Object.entries(flat).filter(([, value]) => value !== null && value !== "" && typeof value !== "object");
  $("viewer-recipe").replaceChildren(...shown.flatMap(([field, value]) => [el("dt", {}, words(field)), el("dd", {}, String(value))]));
}

// What was before and what came of it, one over the other, with a slider between.
async function compare(made, after) {
  const before = await address(`/api/jobs/${made.job}/inputs/image`).catch(() => null);
  if (!before) return;
  const over = el("img", { class: "before", src: before, alt: "Before" });
  const slider = el("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": "How much of the picture before is shown" });
  const cut = () => (over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`);
  slider.addEventListener("input", cut);
  cut();
  $("viewer-picture").replaceChildren(el("div", { class: "compare" }, el("img", { src: after, alt: "After" }), over, slider));
}

async function dropped(file) {
  try {
    const { recipe: told } = await json("/api/read", { method: "POST", body: file });
    trouble();
    $("viewer-title").textContent = file.name;
    $("viewer-picture").replaceChildren(el("img", { src: URL.createObjectURL(file), alt: file.name }));
    $("viewer-actions").replaceChildren(
      el("button", { type: "button", class: "primary", onclick: () => { form.fill(told); back(); } }, "Use its knobs"),
      ...actionsOf(file));
    recipe(told);
    comesFrom(file);
    $("viewer").showModal();
  } catch (error) {
    if (error.status !== 400) return failed(error);
    $("viewer-title").textContent = file.name;
    $("viewer-picture").replaceChildren(el("img", { src: URL.createObjectURL(file), alt: file.name }));
    $("viewer-actions").replaceChildren(...actionsOf(file));
    $("viewer-recipe").replaceChildren(el("dt", {}, "None"), el("dd", {}, error.message));
    comesFrom(file);
    $("viewer").showModal();
  }
}

// What label, credentials and mark say of a picture, and how sure that is.
async function comesFrom(file) {
  const told = await json("/api/verify", { method: "POST", body: file }).catch(() => null);
  if (told) $("viewer-recipe").prepend(el("dt", {}, "Where it comes from"), el("dd", { id: "viewer-origin" }, told.says));
}

function actionsOf(file) {
  const sink = el("button", { type: "button", onclick: () => { $("viewer").close(); tab("works"); works.forward(file); } }, "Watch it sink into noise");
  const able = Object.entries(info.tasks).find(([, task]) => task.fields.includes("image"));
  const use = el("button", { type: "button", onclick: () => { form.pick(file); form.choose(info.tasks.inpaint ? "inpaint" : able[0]); back(); } }, "Work on it");
  return able ? [use, sink] : [sink];
}

// The rest

function tab(which) {
  for (const one of ["draw", "works"]) {
    $(`view-${one}`).hidden = one !== which;
    if (one === which) $(`tab-${one}`).setAttribute("aria-current", "page");
    else $(`tab-${one}`).removeAttribute("aria-current");
  }
  history.replaceState(null, "", which === "draw" ? "#" : `#${which}`);
}

let waiting = null;
function waitForServer(message) {
  trouble(message);
  waiting ??= new Promise((resolve) => {
    const look = async () => {
      const ready = await fetch("/readyz").then((answer) => answer.ok, () => false);
      if (!ready) return setTimeout(look, RETRY);
      trouble();
      say("The server is back.");
      waiting = null;
      fresh();
      return resolve();
    };
    setTimeout(look, RETRY);
  });
  return waiting;
}

function askForKey() {
  if (!$("keys").open) $("keys").showModal();
}

async function busy() {
  const ready = await fetch("/readyz").then((answer) => answer.json(), () => null);
  if (ready === null) return waitForServer("The server does not answer. Is it still running?");
  $("queue").textContent = ready.status === "draining" ? "The server is about to stop and takes no new jobs."
    : ready.waiting > 8 ? `The queue is long: ${ready.waiting} pictures wait.` : "";
  return undefined;
}

let info = null;
async function start() {
  try {
    info = await json("/api/info");
  } catch (error) {
    if (error.status === 401) return askForKey();
    await waitForServer(error.message);
    return start();
  }
  trouble();
  form.build(info);
  if (location.hash === "#works") tab("works");
  for (const job of await json("/api/jobs?limit=100")) if (["queued", "running"].includes(job.state)) follow(job);
  await fresh();
  document.body.dataset.ready = "true";
  return undefined;
}

function listen() {
  form.listen();
  painter.listen();
  works.listen();
  $("form").addEventListener("submit", async (event) => { event.preventDefault(); draw(await form.asked()); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  });
  $("key-form").addEventListener("submit", () => { key.set($("key").value); start(); });
  $("older").addEventListener("click", older);
  $("tab-draw").addEventListener("click", () => tab("draw"));
  $("tab-works").addEventListener("click", () => { tab("works"); $("works-title").focus(); });
  $("paint").addEventListener("click", () => painter.paint($("given-image"), (blob, share) => {
    form.picture.mask = blob;
    $("mask-told").hidden = false;
    $("mask-told").textContent = `A mask over ${Math.round(share * 100)} % of the picture is painted.`;
  }));
  $("drop").addEventListener("drop", (event) => {
    if (!event.dataTransfer.files[0]) return;
    event.preventDefault();
    event.stopPropagation();
    document.body.classList.remove("dropping");
    form.pick(event.dataTransfer.files[0]);
  });
  $("manner-drop").addEventListener("drop", (event) => {
    if (!event.dataTransfer.files[0]) return;
    event.preventDefault();
    event.stopPropagation();
    document.body.classList.remove("dropping");
    form.pickManner(event.dataTransfer.files[0]);
  });
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files[0]) dropped(event.dataTransfer.files[0]);
  });
  addEventListener("keydown", (event) => {
    const typing = /INPUT|TEXTAREA|SELECT/.test(document.activeElement?.tagName);
    if (event.key === "/" && !typing && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      tab("draw");
      $("prompt").focus();
    }
  });
  setInterval(() => { if (!document.hidden) busy(); }, 5000);
}

listen();
start();
