// The service's API: requests with the key, failures as messages, server-sent events over fetch.

const KEPT = "mezzotint-key";
export const key = { get: () => sessionStorage.getItem(KEPT), set: (value) => sessionStorage.setItem(KEPT, value) };

export class Failure extends Error {
  constructor(message, status, wait) {
    super(message);
    this.status = status; // 0: the server did not answer
    this.wait = wait;
  }
}

function withKey(headers = {}) {
  return key.get() ? { ...headers, authorization: `Bearer ${key.get()}` } : headers;
}

export async function call(path, { method = "GET", json, body, signal } = {}) {
  const headers = withKey(json ? { "content-type": "application/json" } : {});
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: json ? JSON.stringify(json) : body, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Is it still running?", 0);
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  const message = told?.error?.message ?? `${answer.status} ${answer.statusText}`;
  throw new Failure(message, answer.status, Number(answer.headers.get("retry-after")) || undefined);
}

export const json = async (path, options) => (await call(path, options)).json();

// Yields {event, data} until the server ends the stream.
export async function* events(path, signal) {
  const answer = await call(path, { signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") return;
      throw new Failure("The server went away while it was drawing.", 0);
    }
    if (read.done) return;
    text += read.value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const event = block.match(/^event: (.*)$/m)?.[1];
      const data = block.match(/^data: (.*)$/m)?.[1];
      if (data) yield { event, data: JSON.parse(data) };
    }
  }
}

// An address that an <img> can show: the picture's own, or with a key, one of its bytes.
const shown = new Map();
export async function address(url) {
  if (!key.get()) return url;
  if (!shown.has(url)) shown.set(url, call(url).then((answer) => answer.blob()).then(URL.createObjectURL));
  return shown.get(url);
}

export const webp = (base64) => `data:image/webp;base64,${base64}`;
export const png = (base64) => `data:image/png;base64,${base64}`;

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}
