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

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** The answer's JSON. Where it is refused for want of a key, the reader is asked for one. */
export async function ask(path, { type, body, signal } = {}) {
  const response = await fetch(new URL(path, base), {
    method: body === undefined ? "GET" : "POST",
    headers: headers({ Accept: "application/json", ...(type && { "Content-Type": type }) }),
    body,
    signal,
  });
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  if (response.status === 401) document.getElementById("key").hidden = false;
  throw new Refused(response.status, answer);
}

/** Call `then` whenever the reader has given a key. */
export function onKey(then) {
  const form = document.getElementById("key");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, document.getElementById("key-input").value.trim());
    form.hidden = true;
    then();
  });
}
