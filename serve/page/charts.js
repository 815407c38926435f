// Small charts as SVG, made of elements: nothing in them is parsed from text.

const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [120, 40];

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

export function node(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** A titled chart, with the latest value in words: `update(now, unit, …)`. */
class Chart {
  constructor(title) {
    this.now = node("p", { className: "now" }, "–");
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
    this.element = node("div", { className: "chart" }, node("h4", { textContent: title }), this.now, this.svg);
    this.title = title;
  }

  say(text, unit) {
    this.now.replaceChildren(text, " ", node("small", { textContent: unit }));
    this.svg.setAttribute("aria-label", `${this.title}: ${text} ${unit}`);
  }

  draw(...shapes) {
    const base = shape("line", { x1: 0, x2: WIDTH, y1: HEIGHT, y2: HEIGHT, class: "base" });
    this.svg.replaceChildren(base, ...shapes);
  }
}

/** Lines through time; a series is an array of numbers or null, the latest last. */
export class Lines extends Chart {
  constructor(title, length, least = 0) {
    super(title);
    this.length = length;
    this.least = least; // the scale never ends below this
  }

  update(text, unit, ...series) {
    this.say(text, unit);
    const top = 1.1 * Math.max(this.least, ...series.flat().map((y) => y ?? 0)) || 1;
    const lines = series.map((ys, n) => {
      const points = ys.map((y, k) => (y === null ? null : [
        (WIDTH * (k + this.length - ys.length)) / (this.length - 1),
        HEIGHT * (1 - y / top),
      ]));
      return { path: path(points), points, n };
    });
    const area = lines.length === 1 ? [shape("path", { d: filled(lines[0].points), class: "area" })] : [];
    this.draw(...area, ...lines.map(({ path: d, n }) => shape("path", { d, class: n ? "line second" : "line" })));
  }
}

const at = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function path(points) {
  return points.map((p, k) => (p ? `${points[k - 1] ? "L" : "M"}${at(p)}` : "")).join("");
}

function filled(points) {
  const known = points.filter(Boolean);
  if (known.length < 2) return "";
  return `M${known[0][0]} ${HEIGHT}L${known.map(at).join("L")}L${known.at(-1)[0]} ${HEIGHT}Z`;
}

/** Columns of counts at powers of two: [[up to so many, count], …]. */
export class Columns extends Chart {
  constructor(title, bounds) {
    super(title);
    this.bounds = bounds;
    this.axis = node("div", { className: "axis" }, ...bounds.filter((_, k) => k % 2 === 0).map((n) => node("span", { textContent: n })));
    this.axis.setAttribute("aria-hidden", "true");
    this.element.append(this.axis);
  }

  update(text, unit, counts) {
    this.say(text, unit);
    const columns = this.bounds.map(() => 0);
    for (const [bound, count] of counts) {
      const place = this.bounds.findIndex((b) => bound <= b);
      columns[place < 0 ? columns.length - 1 : place] += count;
    }
    const top = Math.max(...columns) || 1;
    const width = WIDTH / columns.length;
    this.draw(...columns.map((count, k) => shape("rect", {
      x: k * width + 1,
      width: width - 2,
      y: HEIGHT * (1 - count / top),
      height: (HEIGHT * count) / top,
      class: "column",
    })));
  }
}
