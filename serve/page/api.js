// The server, as this page asks it. Paths are relative: the page may be mounted anywhere.

export const base = new URL(".", document.baseURI);

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error ?? `the server answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
  }
}

const KEY = "tinygrad_ish-key";

/** Whether the reader has given a key. */
export const hasKey = () => sessionStorage.getItem(KEY) !== null;

/** The answer's JSON. Where it is refused for want of a key, the reader is asked for one. */
export async function ask(path, { type, body, signal } = {}) {
  const key = sessionStorage.getItem(KEY);
  const response = await fetch(new URL(path, base), {
    method: body === undefined ? "GET" : "POST",
    headers: {
      Accept: "application/json",
      ...(type && { "Content-Type": type }),
      ...(key && { Authorization: `Bearer ${key}` }),
    },
    body,
    signal,
  });
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const refused = new Refused(response.status, answer);
  const another = key !== sessionStorage.getItem(KEY); // was given meanwhile
  if (response.status === 401 && !another) wantKey(key ? refused.message : "");
  throw refused;
}

/** Ask the reader for a key, and say why the one that was given will not do. */
export function wantKey(why) {
  const problem = document.getElementById("key-problem");
  const text = why && `Not with this key: ${why}.`;
  if (problem.textContent !== text) problem.textContent = text; // said aloud once
  document.getElementById("key").hidden = false;
}

/** Open an address of the server in a new tab, as a link does, but with the key. */
export async function openWithKey(path) {
  const tab = window.open("", "_blank");
  try {
    const text = JSON.stringify(await ask(path), null, 1);
    tab.location = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  } catch {
    tab.close(); // and the page asks for a key
  }
}

/** Call `then` whenever the reader has given a key. */
export function onKey(then) {
  const form = document.getElementById("key");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, document.getElementById("key-input").value.trim());
    document.getElementById("key-problem").textContent = "";
    form.hidden = true;
    then();
  });
}
