// The page: chooses a model, asks it while you draw or type, and shows how the server does.

import { Refused, ask, base, hasKey, onKey, openWithKey, wantKey } from "./api.js";
import { Columns, Lines, node } from "./charts.js";
import { Pad } from "./digit.js";
import { snippets } from "./snippets.js";

const $ = (id) => document.getElementById(id);
const LOOK = 1000; // milliseconds between looks at the figures
const KEPT = 60; // looks that a chart shows
const MOST_BARS = 12;

let catalog = { default: null, models: [] };
let model = null; // {name, version, about, kind}: what is asked
let latencies = [];
let latest = null; // answer, as it came
let asking = false; // one question at a time; the latest waits
let again = false;

// --- which model -------------------------------------------------------------------------------

/** How the page can ask a version: "digit", "picture", "table" or "json". */
function kindOf(about) {
  const [input, ...others] = about.inputs ?? [];
  if (!input || others.length) return "json";
  const shape = input.shape.slice(1);
  const levels = ["uint8", "float32"].includes(input.dtype);
  const image = shape.length === 2 || (shape.length === 3 && [1, 3].includes(shape[0]));
  if (levels && image && shape.at(-1) >= 8 && shape.at(-2) >= 8) {
    return about.metadata?.image === "mnist" && shape.at(-1) === 28 && shape.at(-2) === 28 && shape[0] !== 3
      ? "digit"
      : "picture";
  }
  return about.features && input.dtype.startsWith("float") ? "table" : "json";
}

async function readCatalog() {
  const found = await ask("models");
  const changed = JSON.stringify(found) !== JSON.stringify(catalog);
  catalog = found;
  if (!changed) return;
  fill($("model"), catalog.models.map((m) => [m.name, m.name]), model?.name ?? catalog.default);
  chooseModel();
  showCards();
}

function fill(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => node("option", { value: key, textContent: text })));
  if (options.some(([key]) => key === String(value))) select.value = value;
}

function chooseModel() {
  const found = catalog.models.find((m) => m.name === $("model").value);
  if (!found) return;
  const usable = found.versions.filter((v) => v.state !== "failed");
  const kept = model?.name === found.name && usable.some((v) => v.version === model.version);
  const latest = usable.filter((v) => v.inputs).at(-1) ?? usable.at(-1);
  fill($("version"), usable.map((v) => [v.version, `version ${v.version}`]).reverse(), kept ? model.version : latest?.version);
  chooseVersion();
}

function chooseVersion() {
  const found = catalog.models.find((m) => m.name === $("model").value);
  const chosen = found?.versions.find((v) => v.version === $("version").value);
  if (!chosen) return;
  // One that is only on disk is loaded when it is asked; until then it is taken to be like another.
  const like = chosen.inputs ? {} : found.versions.filter((v) => v.inputs).at(-1);
  const about = { ...like, ...chosen };
  const same = model?.name === found.name && JSON.stringify(model.about) === JSON.stringify(about);
  if (same) return;
  model = { name: found.name, version: about.version, about, kind: kindOf(about) };
  latencies = [];
  latest = null;
  const panels = { digit: "digit", picture: "picture", table: "table", json: "json" };
  for (const [kind, id] of Object.entries(panels)) $(id).hidden = kind !== model.kind;
  $("about").textContent = describe(about);
  if (model.kind === "table") makeForm();
  if (model.kind === "json") $("json-text").value = JSON.stringify({ inputs: emptyInputs() }, null, 1);
  setUpAnswer();
  setUpWhy();
  showSnippet();
  for (const card of document.querySelectorAll(".card")) {
    card.classList.toggle("selected", card.dataset.name === model.name);
  }
  if (about.inputs) askSoon();
}

const pathOf = () => `models/${encodeURIComponent(model.name)}/versions/${model.version}`;

function describe({ inputs, outputs, labels }) {
  if (!inputs) return "loading";
  const shape = (s) => (s.shape.length > 1 ? `[${s.shape.slice(1).join(", ")}]` : "");
  const shown = (s) => `${s.name} ${s.dtype}${shape(s)}`;
  return `${inputs.map(shown).join(", ")} → ${labels ? `${labels.length} classes` : outputs.map(shown).join(", ")}`;
}

function emptyInputs() {
  const zeros = ([n, ...rest]) => Array.from({ length: Math.min(n, 64) }, () => (rest.length ? zeros(rest) : 0));
  const rows = (s) => (s.shape.length > 1 ? [zeros(s.shape.slice(1))] : s.shape.length ? [0] : 0);
  const { inputs = [] } = model.about;
  if (inputs.length === 1) return rows(inputs[0]);
  return Object.fromEntries(inputs.map((s) => [s.name, rows(s)]));
}

// --- asking ------------------------------------------------------------------------------------

/** What the model is asked now: {type, body}, or null if there is nothing to ask. */
function question() {
  const { kind, about } = model;
  if (kind === "digit") {
    const digit = pad.digit();
    showSeen(digit);
    if (!digit) return null;
    const body = about.inputs[0].dtype === "uint8"
      ? digit.pixels
      : Float32Array.from(digit.pixels, (level) => level / 255);
    return { type: "application/octet-stream", body, digit };
  }
  if (kind === "picture") return picture && { type: picture.type || "image/png", body: picture };
  if (kind === "table") {
    const row = formRow();
    return row && { type: "application/json", body: JSON.stringify({ inputs: [row] }) };
  }
  const text = $("json-text").value;
  return text.trim() ? { type: "application/json", body: text } : null;
}

function askSoon() {
  if (!model) return; // none is known yet: the server has not answered, or asks for a key
  again = true;
  if (!asking) run();
}

async function run() {
  asking = true;
  while (again) {
    again = false;
    const [asked, now] = [model, question()];
    if (!now) {
      showNothing();
      continue;
    }
    try {
      const start = performance.now();
      const answer = await ask(`${pathOf()}/predict`, now);
      const took = performance.now() - start;
      if (asked !== model) continue;
      showProblem("");
      showAnswer(answer);
      showLatency(took);
      latest = answer;
      if (language === "curl") showSnippet();
      if ($("explain").checked && !$("why").disabled && !again) await explain(now, asked);
    } catch (error) {
      if (asked === model) showProblem(error.message);
    }
  }
  asking = false;
}

async function explain(now, asked) {
  const query = new URLSearchParams({ method: $("method").value });
  if ($("target").value) query.set("target", $("target").value);
  if (now.digit) query.set("baseline", "input"); // an empty page
  const answer = await ask(`${pathOf()}/explain?${query}`, now);
  if (asked !== model || again) return;
  showWhy(answer, now.digit);
}

// --- the answer --------------------------------------------------------------------------------

let rows = []; // of the bars: {item, fill, value}

function setUpAnswer() {
  const { labels, outputs } = model.about;
  const all = labels !== null && labels !== undefined && labels.length <= MOST_BARS;
  const names = labels ? (all ? labels : Array(MOST_BARS).fill("")) : [];
  rows = names.map((name) => {
    const parts = {
      name: node("span", { className: "name", textContent: name }),
      fill: node("span", { className: "fill" }),
      value: node("span", { className: "value", textContent: "–" }),
    };
    parts.item = node("li", {}, parts.name, node("span", { className: "track" }, parts.fill), parts.value);
    return parts;
  });
  $("bars").replaceChildren(...rows.map((row) => row.item));
  $("bars").hidden = !rows.length;
  $("best").className = labels && Math.max(...labels.map((l) => l.length)) <= 3 ? "best" : "best long";
  $("best").title = outputs?.[0].name ?? "";
  showNothing();
}

function showNothing() {
  $("best").textContent = "–";
  $("latency").textContent = "–";
  $("median").textContent = "\u00a0";
  for (const row of rows) put(row, null);
  showProblem("");
  showWhy(null);
  say("");
}

function put(row, p) {
  row.fill.style.transform = `scaleX(${Math.min(Math.max(p ?? 0, 0), 1)})`;
  row.value.textContent = p === null ? "–" : percent(p);
  row.item.removeAttribute("aria-current");
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;

function showAnswer(answer) {
  const { labels, outputs } = model.about;
  if (!labels) {
    const shown = outputs.map((s) => `${brief(answer.outputs[s.name])}`);
    $("best").replaceChildren(shown.join(", "), " ", node("small", { textContent: outputs.map((s) => s.name).join(", ") }));
    say(`${outputs[0].name} ${shown[0]}`);
    return;
  }
  const values = answer.outputs[outputs[0].name][0];
  const order = values.map((_, k) => k).sort((a, b) => values[b] - values[a]);
  const best = order[0];
  const fixed = labels.length <= MOST_BARS;
  rows.forEach((row, k) => {
    const n = fixed ? k : order[k];
    row.name.textContent = labels[n];
    row.name.title = labels[n];
    put(row, values[n]);
    if (n === best) row.item.setAttribute("aria-current", "true");
  });
  $("best").textContent = labels[best];
  say(`${labels[best]}, ${Math.round(100 * values[best])} percent`);
}

function brief(value) {
  let one = value;
  while (Array.isArray(one) && one.length === 1) [one] = one;
  if (typeof one === "number") return Number(one.toPrecision(6)).toLocaleString("en", { maximumSignificantDigits: 6 });
  const text = JSON.stringify(one, (_, x) => (typeof x === "number" ? Number(x.toPrecision(4)) : x));
  return text.length > 240 ? `${text.slice(0, 240)}…` : text;
}

function showLatency(milliseconds) {
  latencies = [...latencies.slice(-99), milliseconds];
  const sorted = [...latencies].sort((a, b) => a - b);
  $("latency").textContent = milliseconds.toFixed(1);
  $("median").textContent = `median ${sorted[sorted.length >> 1].toFixed(1)} of ${sorted.length}`;
}

function showProblem(text) {
  $("problem").hidden = !text;
  $("problem").textContent = text;
}

let saying;

/** Tell screen readers, once it stays. */
function say(text) {
  clearTimeout(saying);
  saying = setTimeout(() => ($("said").textContent = text), 800);
}

// --- why ---------------------------------------------------------------------------------------

function setUpWhy() {
  const { explains, labels } = model.about;
  $("why").disabled = !explains || !["digit", "picture", "table"].includes(model.kind);
  $("target").closest("label").hidden = !labels;
  fill($("target"), [["", "its answer"], ...(labels ?? []).map((l) => [l, l])], "");
  showWhy(null);
}

function showWhy(answer, digit) {
  if (!answer) {
    pad.warm(null);
    $("reasons").hidden = true;
    $("why-note").textContent = $("why").disabled
      ? "This model was exported without its gradient."
      : $("explain").checked ? "\u00a0" : "Shows which parts of the input speak for a class, and which against it.";
    return;
  }
  const [name] = model.about.inputs.map((s) => s.name);
  const values = answer.attributions[name].flat(Infinity);
  const whose = answer.labels ? `“${answer.labels[0]}”` : "the result";
  const sums = answer.completeness?.[0];
  $("why-note").textContent = sums
    ? `For ${whose}, against ${digit ? "an empty page" : "zero"}: the parts sum to ${signed(sums.sum)}, its score rose by ${signed(sums.score_difference)}.`
    : `For ${whose}: how its score would change with each number.`;
  if (digit && values.length === 28 * 28) pad.warm(heatOf(values), digit.corner, digit.unit);
  if (model.kind === "table") showReasons(values);
}

const signed = (x) => `${x < 0 ? "−" : "+"}${Math.abs(x).toFixed(2)}`;

/** Attributions as colours: opaque where they are large, of the colour of their sign. */
function heatOf(values) {
  const style = getComputedStyle(document.documentElement);
  const [more, less] = ["--for", "--against"].map((name) => rgb(style.getPropertyValue(name)));
  const sizes = values.map(Math.abs).sort((a, b) => a - b);
  const top = sizes[Math.floor(sizes.length * 0.995)] || 1;
  const image = new ImageData(28, 28);
  values.forEach((value, k) => {
    const strength = Math.min(1, Math.abs(value) / top) ** 0.75;
    image.data.set([...(value > 0 ? more : less), 255 * strength], 4 * k);
  });
  return image;
}

function rgb(hex) {
  const n = parseInt(hex.trim().slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255];
}

function showReasons(values) {
  const top = Math.max(...values.map(Math.abs)) || 1;
  const items = model.about.features.map((feature, k) => {
    const fill = node("span", { className: values[k] < 0 ? "fill less" : "fill" });
    fill.style.transform = `scaleX(${values[k] / top})`;
    return node("li", {},
      node("span", { className: "name", textContent: feature, title: feature }),
      node("span", { className: "track" }, fill),
      node("span", { className: "value", textContent: signed(values[k]) }));
  });
  $("reasons").replaceChildren(...items);
  $("reasons").hidden = false;
}

// --- the digit, the picture, the form ----------------------------------------------------------

const pad = new Pad($("pad"), $("heat"), () => {
  $("invite").hidden = !pad.empty;
  $("clear").disabled = $("save").disabled = pad.empty;
  askSoon();
});

function showSeen(digit) {
  const image = new ImageData(28, 28);
  for (let k = 0; k < 784; k++) {
    const level = digit ? digit.pixels[k] : 0;
    image.data.set([level, level, level, 255], 4 * k);
  }
  $("seen").getContext("2d").putImageData(image, 0, 0);
}

let picture = null;

async function showPicture(file) {
  picture = file;
  const canvas = $("shown");
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(canvas.width / bitmap.width, canvas.height / bitmap.height);
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    context.drawImage(bitmap, (canvas.width - w) / 2, (canvas.height - h) / 2, w, h);
  } catch {
    // the browser cannot show it; the server says whether it can read it
  }
  askSoon();
}

function makeForm() {
  const fields = model.about.features.map((feature) => {
    const input = node("input", { type: "number", step: "any", required: true, inputMode: "decimal" });
    return node("label", {}, node("span", { textContent: feature }), input);
  });
  const hint = node("p", { className: "quiet", textContent: "Fill in all; the answer follows as you type." });
  $("table").replaceChildren(...fields, hint);
}

/** The numbers of the form, or null where one is missing. */
function formRow() {
  const values = [...$("table").querySelectorAll("input")].map((input) => input.valueAsNumber);
  return values.every(Number.isFinite) ? values : null;
}

// --- figures -----------------------------------------------------------------------------------

const cards = new Map(); // by the model's name: {charts, history}

function showCards() {
  const names = new Set(catalog.models.map((m) => m.name));
  for (const name of cards.keys()) if (!names.has(name)) cards.delete(name);
  const elements = catalog.models.map((m) => {
    const card = cards.get(m.name) ?? newCard();
    cards.set(m.name, card);
    const serving = m.versions.filter((v) => v.state === "ready").at(-1);
    const choose = node("button", { type: "button", textContent: m.name });
    choose.addEventListener("click", () => {
      $("model").value = m.name;
      chooseModel();
      $("try").focus();
    });
    const head = node("header", {}, node("h3", {}, choose),
      ...m.versions.map((v) => node("span", {
        className: v.state === "failed" ? "tag failed" : "tag",
        textContent: `version ${v.version} ${v.state === "available" ? "on disk" : v.state}`,
        title: v.reason ?? "",
      })),
      node("span", { className: "shapes", textContent: serving ? `${describe(serving)}, ${size(serving.nbytes)}` : "" }));
    const reasons = m.versions.filter((v) => v.reason).map((v) => node("p", { className: "failed quiet", textContent: `version ${v.version}: ${v.reason}` }));
    card.element.replaceChildren(head, ...reasons, card.charts);
    card.element.dataset.name = m.name;
    card.element.classList.toggle("selected", m.name === model?.name);
    return card.element;
  });
  $("cards").replaceChildren(...elements);
}

const size = (bytes) => (bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB` : `${Math.ceil((bytes ?? 0) / 1e3)} kB`);

function newCard() {
  const shown = {
    rate: new Lines("requests/s", KEPT, 1),
    latency: new Lines("latency p50, p99", KEPT, 1),
    batches: new Columns("batch size", [1, 2, 4, 8, 16, 32, 64, 128]),
    queue: new Lines("queue", KEPT, 1),
  };
  const charts = node("div", { className: "charts" }, ...Object.values(shown).map((c) => c.element));
  return { element: node("article", { className: "card" }), charts, shown, history: [] };
}

function showFigures(stats) {
  const open = stats.connections ? `, ${stats.connections} open connections` : "";
  $("total").textContent = `up ${duration(stats.uptime)}, ${stats.requests.toLocaleString("en")} requests${open}`;
  for (const [name, card] of cards) {
    const figures = stats.models[name];
    if (!figures) continue;
    card.history = [...card.history.slice(1 - KEPT), figures];
    const past = (key) => card.history.map((f) => f[key] ?? null);
    const { rate, latency, batches, queue } = card.shown;
    rate.update(count(figures.requests_per_second), "per second", past("requests_per_second"));
    const [p50, p99] = [figures.p50_ms, figures.p99_ms];
    latency.update(p50 === null ? "–" : `${time(p50)} · ${time(p99)}`, p50 === null ? "" : "ms", past("p50_ms"), past("p99_ms"));
    const mean = figures.batches_per_second ? figures.rows_per_second / figures.batches_per_second : null;
    batches.update(mean === null ? "–" : count(mean), mean === null ? "" : "rows on average", figures.batch_sizes);
    queue.update(String(figures.queue), "waiting", past("queue"));
  }
}

const count = (x) => (x >= 100 ? Math.round(x).toLocaleString("en") : x.toFixed(1));
const time = (x) => (x >= 10 ? x.toFixed(0) : x.toPrecision(2));

function duration(seconds) {
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, Math.floor(seconds) % 60];
  return h ? `${h} h ${m} min` : m ? `${m} min ${s} s` : `${s} s`;
}

function showRefusal(error) {
  showState(error instanceof Refused ? "waiting" : "gone", error.message);
  if (error.status === 403) wantKey(error.message);
}

async function readFigures() {
  try {
    showFigures(await ask("stats"));
  } catch (error) {
    if (error.status !== 403) throw error;
    $("total").textContent = "The figures are for keys with the scope “metrics”.";
  }
}

async function look(turn = 0) {
  if (document.visibilityState === "visible") {
    try {
      if (turn % 3 === 0) await readCatalog();
      showState("ready");
      await readFigures();
    } catch (error) {
      showRefusal(error);
    }
  }
  setTimeout(look, LOOK, turn + 1);
}

function showState(state, why = "") {
  const text = { ready: "ready", waiting: why, gone: "no connection" }[state];
  if ($("state").dataset.state === state && $("state").textContent === text) return;
  $("state").dataset.state = state;
  $("state").textContent = text;
}

// --- code --------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
let language = "curl";

function showSnippet() {
  if (!model?.about.inputs) return;
  const row = model.kind === "table" ? [formRow() ?? model.about.features.map(() => 0)] : emptyInputs();
  const url = new URL(`models/${encodeURIComponent(model.name)}/predict`, base).href;
  const code = snippets(model.kind, url, row, hasKey())[language];
  const answered = language === "curl" && latest ? `\n\n${shortened(latest)}` : "";
  $("snippet").textContent = code + answered;
  $("call-note").textContent = ["digit", "picture"].includes(model.kind)
    ? "“Save PNG” above gives a digit.png. The server centres and scales it as it was when the model learnt."
    : "Several rows in one request are answered together.";
}

/** An answer as JSON to read: short numbers, and the first few of a list. */
function shortened(answer) {
  const short = (value) => {
    if (Array.isArray(value)) {
      const some = value.slice(0, 4).map(short);
      return `[${[...some, ...(value.length > 4 ? ["…"] : [])].join(", ")}]`;
    }
    if (value === null || typeof value !== "object") {
      return JSON.stringify(typeof value === "number" ? Number(value.toPrecision(3)) : value);
    }
    return `{${Object.entries(value).map(([key, inside]) => `"${key}": ${short(inside)}`).join(", ")}}`;
  };
  const lines = Object.entries(answer).map(([key, value]) => `  "${key}": ${short(value)}`);
  return `{\n${lines.join(",\n")}\n}`;
}

function chooseLanguage(tab) {
  language = tab.id.slice("tab-".length);
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
  }
  $("code").setAttribute("aria-labelledby", tab.id);
  showSnippet();
}

tabs.forEach((tab, k) => {
  tab.addEventListener("click", () => chooseLanguage(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(k + step + tabs.length) % tabs.length];
    next.focus();
    chooseLanguage(next);
  });
});

async function copy() {
  const button = $("copy");
  try {
    await navigator.clipboard.writeText($("snippet").textContent.split("\n\n{")[0]);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("snippet")); // without TLS there is no clipboard
    button.textContent = "Selected";
  }
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

// --- events ------------------------------------------------------------------------------------

$("model").addEventListener("change", chooseModel);
$("version").addEventListener("change", chooseVersion);
$("clear").addEventListener("click", () => {
  pad.clear();
  $("pad").focus();
});
$("save").addEventListener("click", async () => {
  const url = URL.createObjectURL(await pad.png());
  node("a", { href: url, download: "digit.png" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});
$("file").addEventListener("change", (event) => event.target.files[0] && showPicture(event.target.files[0]));
$("table").addEventListener("input", () => {
  showSnippet();
  askSoon();
});
for (const id of ["table", "json"]) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    askSoon();
  });
}
for (const id of ["explain", "target", "method"]) {
  $(id).addEventListener("change", () => {
    showWhy(null);
    askSoon();
  });
}
$("copy").addEventListener("click", copy);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", askSoon);
for (const link of document.querySelectorAll("a[href='openapi.json']")) {
  link.addEventListener("click", (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    openWithKey("openapi.json");
  });
}
onKey(() => readCatalog().then(askSoon, showRefusal));
look();
