// The form: its fields come from the service's schema, so that a new knob of a request is a new knob here.

import { $, el, words } from "./dom.js";
import { base64 } from "./api.js";

const KEPT = "mezzotint-form";
const FIRST = ["left", "top", "right", "bottom", "num_images", "seed", "size", "strength", "style_strength", "content_strength", "distance", "at"]; // in sight; the others behind "More knobs"
const OWN = new Set(["prompt", "task", "width", "height"]); // have a place of their own
const NAMES = {
  num_images: "How many", num_inference_steps: "Steps", guidance_scale: "Guidance", negative_prompt: "Not in the picture",
  grid: "Noise levels", model: "Model", loras: "LoRAs", embeddings: "Learnt words", mark: "Invisible mark",
};
const SIZED = new Set(["original_width", "original_height", "crop_left", "crop_top", "aesthetic_score", "negative_aesthetic_score"]); // what SDXL is told
const TASKS = { text2img: "Draw from words", img2img: "Draw a picture anew", vary: "Vary a picture",
  inpaint: "Draw a part anew", outpaint: "Grow a picture", interpolate: "Between two prompts" };

export const picture = { blob: null, mask: null, manner: null }; // what is worked on, where, and after what
let info = null;

export function build(given) {
  info = given;
  $("task").replaceChildren(...Object.keys(info.tasks).map((name) => el("option", { value: name }, TASKS[name] ?? words(name))));
  $("field-task").hidden = Object.keys(info.tasks).length < 2;
  $("wearable").hidden = !info.loras.length;
  $("wearable").replaceChildren(...info.loras.map((name) => el("button", { type: "button", onclick: () => put(`<lora:${name}:0.8>`) }, name)));
  show(JSON.parse(localStorage.getItem(KEPT) ?? "{}"));
}

// A tag at the end of the prompt.
function put(tag) {
  $("prompt").value = `${$("prompt").value.trimEnd()} ${tag}`.trimStart();
  $("prompt").focus();
}

const model = () => info.models[$("knob-model")?.value || Object.keys(info.models)[0]];
const isPicture = (schema) => JSON.stringify(schema).includes("contentEncoding");
const plain = (schema) => schema.anyOf?.find((one) => one.type !== "null") ?? schema;

// The fields of the task that is chosen, with these values in them.
function show(values) {
  if (values.task && info.tasks[values.task]) $("task").value = values.task;
  if ("prompt" in values) $("prompt").value = values.prompt ?? "";
  const task = info.tasks[$("task").value];
  $("task-help").textContent = task.about;
  const fields = task.fields.filter((name) => !OWN.has(name) && !isPicture(info.request.properties[name]) && (model().sized || !SIZED.has(name)));
  $("given").hidden = !task.fields.includes("image");
  $("manner").hidden = !task.fields.includes("style_image");
  $("paint").hidden = !task.fields.includes("mask") || !picture.blob;
  const made = new Map(fields.map((name) => [name, knob(name, values[name])]));
  const first = [];
  if (Object.keys(info.models).length > 1) first.push(choice("model", "Model", Object.keys(info.models), values.model));
  if (task.fields.includes("width")) made.set("size", size(values));
  for (const name of FIRST) if (made.has(name)) first.push(made.get(name));
  $("knobs").replaceChildren(...first);
  $("knobs-more").replaceChildren(...[...made].filter(([name]) => !FIRST.includes(name)).map(([, one]) => one));
}

function field(name, label, control, help, wide) {
  const id = `knob-${name}`;
  control.id = id;
  control.name = name;
  if (help) control.setAttribute("aria-describedby", `${id}-help`);
  return el("div", { class: wide ? "field wide" : "field" },
    el("label", { for: id }, label), control, help ? el("p", { class: "help", id: `${id}-help` }, help) : null);
}

function choice(name, label, options, value, help) {
  const list = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  const select = el("select", {}, ...list.map(([key, text]) => el("option", { value: key }, text)));
  select.value = value ?? list[0][0];
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  return field(name, label, select, help);
}

function knob(name, value) {
  const whole = info.request.properties[name], schema = plain(whole);
  const label = NAMES[name] ?? words(name), help = whole.description ?? "";
  const usual = name === "mark" ? info.mark : model()[name] ?? info.tasks[$("task").value].heeds?.[name] ?? whole.default;
  if (name === "sampler" || name === "grid") {
    const known = name === "sampler" ? Object.keys(info.samplers) : info.grids;
    return choice(name, label, [["", `the model's own (${usual})`], ...known], value, help);
  }
  if (schema.type === "boolean")
    return choice(name, label, [["", usual ? "yes (usual)" : "no (usual)"], ["true", "yes"], ["false", "no"]], String(value ?? ""), help);
  if (schema.enum) return choice(name, label, [["", `usual (${usual})`], ...schema.enum], value, help);
  if (schema.type === "array") {
    const control = el("input", { type: "text", value: listed(value), "data-list": "true", placeholder: "name:0.8, name" });
    return field(name, label, control, help, true);
  }
  const number = schema.type === "integer" || schema.type === "number";
  const control = el("input", {
    type: number ? "number" : "text", value: value ?? "", min: schema.minimum?.toString(),
    max: (name === "num_images" ? info.limits.images : schema.maximum)?.toString(),
    step: schema.type === "integer" ? "1" : "any",
    placeholder: name === "seed" ? "random" : usual === null || usual === undefined ? "" : String(usual),
  });
  return field(name, label, control, help, name === "negative_prompt" || (!number && schema.type === "string"));
}

// LoRAs and learnt words, of a recipe or as they were typed, as text: "ink:0.8, thing".
export function listed(value) {
  if (!Array.isArray(value)) return value ?? "";
  return value.map((one) => (typeof one === "string" ? one : worn(one))).join(", ");
}

function worn({ name, weight, text_weight: text }) {
  if (weight === undefined) return name;
  return text === null || text === undefined ? `${name}:${weight}` : `${name}:${text}:${weight}`;
}

function size(values) {
  const native = model(), sizes = new Set();
  for (const [w, h] of [[1, 1], [1.5, 1], [1, 1.5], [2, 1], [1, 2], [2, 2]]) {
    const width = Math.round((native.width * w) / native.factor) * native.factor;
    const height = Math.round((native.height * h) / native.factor) * native.factor;
    if (width * height <= info.limits.pixels) sizes.add(`${width}x${height}`);
  }
  const asked = values.width && values.height ? `${values.width}x${values.height}` : "";
  if (asked) sizes.add(asked);
  const usual = $("given").hidden ? `${native.width} × ${native.height}` : "the picture's";
  return choice("size", "Size", [["", usual], ...[...sizes].map((one) => [one, one.replace("x", " × ")])], asked,
    "width × height in pixels; far from the model's own, pictures get worse");
}

// What is asked for: fields of a request, and only those that were filled in.
export async function asked() {
  const task = info.tasks[$("task").value], request = { prompt: $("prompt").value.trim() };
  if ($("task").value !== "text2img") request.task = $("task").value;
  for (const control of $("form").querySelectorAll(".knobs input, .knobs select")) {
    if (control.value === "") continue;
    if (control.name === "size") [request.width, request.height] = control.value.split("x").map(Number);
    else if (control.dataset.list) request[control.name] = control.value.split(",").map((one) => one.trim()).filter(Boolean);
    else if (control.type === "number") request[control.name] = Number(control.value);
    else if (control.value === "true" || control.value === "false") request[control.name] = control.value === "true";
    else request[control.name] = control.value;
  }
  keep();
  if (task.fields.includes("image") && picture.blob) request.image = await base64(picture.blob);
  if (task.fields.includes("mask") && picture.mask) request.mask = await base64(picture.mask);
  if (task.fields.includes("style_image") && picture.manner) request.style_image = await base64(picture.manner);
  return request;
}

function kept() {
  const values = { task: $("task").value, prompt: $("prompt").value };
  for (const control of $("form").querySelectorAll(".knobs input, .knobs select")) {
    if (control.value === "") continue;
    if (control.name === "size") [values.width, values.height] = control.value.split("x").map(Number);
    else values[control.name] = control.value;
  }
  return values;
}

function keep() {
  localStorage.setItem(KEPT, JSON.stringify(kept()));
}

// A recipe's fields into the form.
export function fill(recipe) {
  const task = info.tasks[recipe.task] ? recipe.task : "text2img";
  const values = { task, prompt: recipe.prompt };
  for (const name of Object.keys(info.request.properties)) {
    const usual = model()[name] ?? info.request.properties[name].default;
    if (recipe[name] !== undefined && recipe[name] !== null && recipe[name] !== usual) values[name] = recipe[name];
  }
  if (values.width || values.height) [values.width, values.height] = [recipe.width, recipe.height];
  show(values);
}

export function pick(blob) {
  picture.blob = blob;
  picture.mask = null;
  $("given-image").hidden = $("unpick").hidden = !blob;
  $("given-help").hidden = Boolean(blob);
  $("mask-told").hidden = true;
  if (blob) $("given-image").src = URL.createObjectURL(blob);
  $("paint").hidden = !blob || !info.tasks[$("task").value].fields.includes("mask");
}

export function pickManner(blob) {
  picture.manner = blob;
  $("manner-image").hidden = !blob;
  if (blob) $("manner-image").src = URL.createObjectURL(blob);
}

export function choose(task) {
  show({ ...kept(), task });
}

export function listen() {
  $("task").addEventListener("change", () => show(kept()));
  $("form").addEventListener("change", (event) => event.target.name === "model" && show(kept()));
  $("reset").addEventListener("click", () => {
    localStorage.removeItem(KEPT);
    show({ prompt: $("prompt").value, task: $("task").value });
  });
  $("given-file").addEventListener("change", (event) => event.target.files[0] && pick(event.target.files[0]));
  $("manner-file").addEventListener("change", (event) => event.target.files[0] && pickManner(event.target.files[0]));
  $("unpick").addEventListener("click", () => pick(null));
}
