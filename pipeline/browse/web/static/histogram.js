// One histogram: bars of all samples, bars of those that the other filters leave, and a range that is brushed or typed.

import { element, svg } from "./dom.js";
import { count, figure } from "./format.js";

const WIDTH = 200;
const HEIGHT = 56;
// the smallest count that is not zero is still seen
const LEAST = 1;
// a shorter drag is a click, which clears the range
const CLICK = 3;

export class Histogram {
  /** `chosen(low, high)` is called with the range; both are null where there is none. */
  constructor(column, chosen) {
    this.column = column;
    this.chosen = chosen;
    this.range = [null, null];
    this.plot = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.low = this.#bound("smallest");
    this.high = this.#bound("largest");
    this.title = element("h3", {}, element("b", {}, column.label), element("span", {}, column.unit));
    this.node = element(
      "div",
      { class: "histogram", "data-column": column.name, role: "group", "aria-label": column.label },
      this.title,
      this.plot,
      element("div", { class: "bounds" }, this.low, this.high),
    );
    this.plot.addEventListener("pointerdown", (event) => this.#brush(event));
  }

  show(found, range) {
    this.found = found;
    this.range = range;
    this.node.classList.toggle("active", range[0] !== null || range[1] !== null);
    const without = found.without ? `${count(found.without)} samples have no value` : "";
    this.title.title = [this.column.note, without].filter(Boolean).join("; ");
    const { minimum, maximum } = this.column;
    for (const [field, value, end] of [[this.low, range[0], minimum], [this.high, range[1], maximum]]) {
      if (document.activeElement !== field) field.value = value ?? "";
      field.placeholder = figure(end);
    }
    this.#draw();
  }

  #draw() {
    const { counts: all, matching } = this.found;
    const tallest = Math.max(1, ...all);
    const width = WIDTH / Math.max(1, all.length);
    const { edges } = this.found;
    const [low, high] = this.range;
    const outside = (bin) => (low !== null && edges[bin + 1] <= low) || (high !== null && edges[bin] > high);
    const bar = (kind) => (value, number) => {
      if (!value) return null;
      const height = Math.max(LEAST, ((HEIGHT - 2) * value) / tallest);
      const place = { x: number * width + 0.15 * width, y: HEIGHT - height, width: 0.85 * width, height };
      const name = outside(number) ? `${kind} outside` : kind;
      return svg("rect", { class: name, "data-count": value, "data-bin": number, ...place });
    };
    const bars = [...all.map(bar("all")), ...matching.map(bar("matching"))].filter(Boolean);
    this.plot.replaceChildren(...bars, ...this.#selection(this.range));
  }

  #selection([low, high]) {
    if (low === null && high === null) return [];
    const from = low === null ? 0 : this.#x(low);
    const to = high === null ? WIDTH : this.#x(high);
    const edge = (x) => svg("line", { class: "edge", x1: x, x2: x, y1: 0, y2: HEIGHT });
    const area = svg("rect", { class: "brush", x: from, y: 0, width: Math.max(0, to - from), height: HEIGHT });
    return [area, edge(from), edge(to)];
  }

  /** Place of a value; edges of bins are equally far apart, whatever their values. */
  #x(value) {
    const { edges } = this.found;
    const bins = edges.length - 1;
    if (value <= edges[0]) return 0;
    if (value >= edges[bins]) return WIDTH;
    const bin = edges.findLastIndex((edge) => edge <= value);
    return (WIDTH * (bin + (value - edges[bin]) / (edges[bin + 1] - edges[bin]))) / bins;
  }

  #value(x) {
    const { edges } = this.found;
    const bins = edges.length - 1;
    const place = Math.min(Math.max((bins * x) / WIDTH, 0), bins);
    const bin = Math.min(Math.floor(place), bins - 1);
    return edges[bin] + (place - bin) * (edges[bin + 1] - edges[bin]);
  }

  #brush(event) {
    if (!this.found || this.found.edges.length < 2 || event.button) return;
    const box = this.plot.getBoundingClientRect();
    const at = ({ clientX }) => Math.min(Math.max((WIDTH * (clientX - box.left)) / box.width, 0), WIDTH);
    const start = at(event);
    const startX = event.clientX;
    this.plot.setPointerCapture(event.pointerId);
    const ordered = (moved) => [Math.min(start, at(moved)), Math.max(start, at(moved))];
    const move = (moved) => {
      this.plot.querySelectorAll(".brush, .edge").forEach((node) => node.remove());
      this.plot.append(...this.#selection(ordered(moved).map((x) => this.#value(x))));
    };
    const end = (moved) => {
      this.plot.removeEventListener("pointermove", move);
      if (moved.type === "pointercancel") return this.#draw();
      if (Math.abs(moved.clientX - startX) < CLICK) return this.chosen(null, null);
      const [from, to] = ordered(moved);
      const low = from <= 0 ? null : this.#rounded(this.#value(from), 1);
      this.chosen(low, to >= WIDTH ? null : this.#rounded(this.#value(to), -1));
    };
    this.plot.addEventListener("pointermove", move);
    this.plot.addEventListener("pointerup", end, { once: true });
    this.plot.addEventListener("pointercancel", end, { once: true });
  }

  /** A bound that is short enough to be read; whole numbers are rounded inwards (`inwards` is 1 for the lower one). */
  #rounded(value, inwards) {
    if (this.column.kind === "integer") return inwards > 0 ? Math.ceil(value) : Math.floor(value);
    return Number(value.toPrecision(4));
  }

  #bound(name) {
    const typed = () => this.chosen(this.#typed(this.low), this.#typed(this.high));
    const label = `${this.column.label}, ${name}`;
    return element("input", { type: "number", step: "any", "aria-label": label, change: typed });
  }

  #typed(field) {
    return field.value === "" ? null : Number(field.value);
  }
}
