// Elements without ceremony: el("button", {type: "button", onclick: f}, "Draw").

export const $ = (id) => document.getElementById(id);

export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (key in made && typeof value !== "string") made[key] = value;
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// For those who listen: told politely, once.
export function say(text) {
  $("told").textContent = text;
}

export function trouble(text) {
  $("trouble").hidden = !text;
  $("trouble").textContent = text ?? "";
}

export const words = (name) => name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());

export function level(sigma) {
  return sigma === 0 ? "no noise left" : `noise ${sigma >= 10 ? sigma.toFixed(0) : sigma.toPrecision(2)} times the picture`;
}
