// Drawing a digit, and bringing it into the form of MNIST's: the same steps as `centred` of
// tinygrad_ish/deploy/inputs.py, to which tests/test_serve_page.py compares them.

const SIDE = 280; // of the drawing, in its own units
const PEN = 21;
const BOX = 20 / 28;
const STEP = 10; // of the pen by an arrow key

/** Ink (Float32Array, width × height, 0 where there is none) as uint8 28 × 28: its box is scaled
 *  to fit 20 × 20, and its centre of mass put in the middle. Also where that came from: the scale,
 *  and the corner of the 28 × 28 in the drawing. null where nothing is drawn. */
export function centred(ink, width, height, side = 28) {
  let most = 0;
  for (const value of ink) if (value > most) most = value;
  if (!most) return null;
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0, k = 0; y < height; y++) {
    for (let x = 0; x < width; x++, k++) {
      if (ink[k] > most / 16) {
        if (x < left) left = x;
        if (x > right) right = x;
        if (y < top) top = y;
        if (y > bottom) bottom = y;
      }
    }
  }
  const [w, h] = [right - left + 1, bottom - top + 1];
  const scale = (BOX * side) / Math.max(w, h);
  const [small, low] = [Math.max(1, even(w * scale)), Math.max(1, even(h * scale))];
  const box = new Float32Array(w * h);
  for (let y = 0; y < h; y++) {
    const start = (top + y) * width + left;
    box.set(ink.subarray(start, start + w), y * w);
  }
  const patch = resized(box, w, h, small, low);
  let peak = 0;
  for (const value of patch) if (value > peak) peak = value;
  let [mass, massX, massY] = [0, 0, 0];
  patch.forEach((value, k) => {
    const level = (patch[k] = Math.min(255, even((value * 255) / peak)));
    mass += level;
    massX += level * (k % small);
    massY += level * Math.floor(k / small);
  });
  const x0 = clip(even(side / 2 - massX / mass), 0, side - small);
  const y0 = clip(even(side / 2 - massY / mass), 0, side - low);
  const pixels = new Uint8Array(side * side);
  for (let y = 0; y < low; y++) {
    for (let x = 0; x < small; x++) pixels[(y0 + y) * side + x0 + x] = patch[y * small + x];
  }
  const unit = { x: w / small, y: h / low };
  return { pixels, corner: { x: left - x0 * unit.x, y: top - y0 * unit.y }, unit };
}

/** Halves go to the even neighbour, as in Python. */
function even(x) {
  const low = Math.floor(x);
  if (x - low !== 0.5) return Math.round(x);
  return low % 2 ? low + 1 : low;
}

const clip = (x, low, high) => Math.min(Math.max(x, low), high);

/** An image at another size, anti-aliased by a triangle as wide as the reduction. */
function resized(image, width, height, toWidth, toHeight) {
  const across = weights(width, toWidth);
  const rows = new Float32Array(height * toWidth);
  for (let y = 0; y < height; y++) {
    across.forEach(({ start, parts }, x) => {
      let sum = 0;
      for (let k = 0; k < parts.length; k++) sum += parts[k] * image[y * width + start + k];
      rows[y * toWidth + x] = sum;
    });
  }
  const down = weights(height, toHeight);
  const found = new Float32Array(toHeight * toWidth);
  down.forEach(({ start, parts }, y) => {
    for (let x = 0; x < toWidth; x++) {
      let sum = 0;
      for (let k = 0; k < parts.length; k++) sum += parts[k] * rows[(start + k) * toWidth + x];
      found[y * toWidth + x] = sum;
    }
  });
  return found;
}

/** For each place in the result: where its sources begin, and their shares. */
function weights(from, to) {
  const scale = from / to;
  const reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, k) => {
    const centre = (k + 0.5) * scale;
    const start = Math.max(0, Math.floor(centre - reach + 0.5));
    const stop = Math.min(from, Math.floor(centre + reach + 0.5));
    const parts = [];
    for (let n = start; n < stop; n++) {
      parts.push(Math.max(0, 1 - Math.abs((n - centre + 0.5) / reach)));
    }
    const sum = parts.reduce((a, b) => a + b, 0);
    return { start, parts: parts.map((part) => part / sum) };
  });
}

/** The drawing area. `changed` is called at most once a frame while something is drawn. */
export class Pad {
  constructor(canvas, heat, changed) {
    this.canvas = canvas;
    this.heat = heat;
    this.changed = changed;
    this.strokes = [];
    this.pen = { x: SIDE / 2, y: SIDE / 4, down: false, shown: false };
    this.paper = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    this.context = this.paper.getContext("2d", { willReadFrequently: true });
    this.waiting = false;
    this.listen();
    new ResizeObserver(() => this.show()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.show());
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      this.pen.shown = this.pen.down = false;
      this.pointer = event.pointerId;
      this.begin(this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.pointerId !== this.pointer) return;
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.go(this.place(each));
    });
    for (const name of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(name, (event) => {
        if (event.pointerId === this.pointer) this.pointer = undefined;
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => {
      this.pen.shown = this.pen.down = false;
      this.show();
    });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { pen } = this;
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const step = event.shiftKey ? STEP / 4 : STEP;
      pen.x = clip(pen.x + way[0] * step, 0, SIDE);
      pen.y = clip(pen.y + way[1] * step, 0, SIDE);
      if (pen.down) this.go({ x: pen.x, y: pen.y });
    } else if (event.key === " ") {
      pen.down = !pen.down;
      if (pen.down) this.begin({ x: pen.x, y: pen.y });
    } else if (event.key === "c" || event.key === "C" || event.key === "Delete" || event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    pen.shown = true;
    this.show();
  }

  /** Where a pointer is, in the drawing's units. */
  place(event) {
    const area = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - area.left) / area.width) * SIDE;
    const y = ((event.clientY - area.top) / area.height) * SIDE;
    return { x: clip(x, 0, SIDE), y: clip(y, 0, SIDE) };
  }

  begin(point) {
    this.strokes.push([point]);
    this.touch();
  }

  go(point) {
    this.strokes.at(-1)?.push(point);
    this.touch();
  }

  clear() {
    this.strokes = [];
    this.pen.down = false;
    this.touch();
  }

  touch() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.heated = null;
      this.show();
      this.changed();
    });
  }

  get empty() {
    return !this.strokes.length;
  }

  trace(context, scale, colour) {
    context.strokeStyle = colour;
    context.lineWidth = PEN * scale;
    context.lineCap = context.lineJoin = "round";
    for (const stroke of this.strokes) {
      context.beginPath();
      context.moveTo(stroke[0].x * scale, stroke[0].y * scale);
      for (const { x, y } of stroke) context.lineTo(x * scale, y * scale);
      context.stroke();
    }
  }

  /** The drawing as MNIST's digits are, or null. */
  digit() {
    if (this.empty) return null;
    this.context.clearRect(0, 0, SIDE, SIDE);
    this.trace(this.context, 1, "#000");
    const { data } = this.context.getImageData(0, 0, SIDE, SIDE);
    const ink = new Float32Array(SIDE * SIDE);
    for (let k = 0; k < ink.length; k++) ink[k] = data[4 * k + 3];
    return centred(ink, SIDE, SIDE);
  }

  /** The drawing as a PNG, black on white. */
  png() {
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SIDE, SIDE);
    this.trace(context, 1, "#000");
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }

  /** Lay a map of 28 × 28 colours (ImageData) over the drawing, where its pixels came from. */
  warm(image, corner, unit) {
    this.heated = image && { image, corner, unit };
    this.show();
  }

  show() {
    const width = Math.round(this.canvas.clientWidth * devicePixelRatio);
    if (!width) return;
    for (const canvas of [this.canvas, this.heat]) {
      if (canvas.width !== width) canvas.width = canvas.height = width;
    }
    const scale = width / SIDE;
    const style = getComputedStyle(this.canvas);
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, width, width);
    context.globalAlpha = this.heated ? 0.2 : 1;
    this.trace(context, scale, style.color);
    context.globalAlpha = 1;
    this.showHeat(scale);
    if (this.pen.shown) this.showPen(context, scale, style.getPropertyValue("--accent"));
  }

  showHeat(scale) {
    const context = this.heat.getContext("2d");
    context.clearRect(0, 0, this.heat.width, this.heat.height);
    if (!this.heated) return;
    const { image, corner, unit } = this.heated;
    const small = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
    small.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    const frame = [corner.x, corner.y, image.width * unit.x, image.height * unit.y].map((n) => n * scale);
    context.drawImage(small, ...frame);
  }

  showPen(context, scale, colour) {
    const { x, y, down } = this.pen;
    context.beginPath();
    context.arc(x * scale, y * scale, (PEN / 2) * scale, 0, 2 * Math.PI);
    context.lineWidth = 2 * devicePixelRatio;
    context.strokeStyle = colour;
    context.setLineDash(down ? [] : [4 * devicePixelRatio, 4 * devicePixelRatio]);
    context.stroke();
    context.setLineDash([]);
  }
}
