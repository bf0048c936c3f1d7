// An image with a map of its vision tokens over it. The canvas has one pixel for each token.

import { element, svg } from "./dom.js";
import { figure } from "./format.js";

const TALLEST = 560;
// a smaller image is enlarged without smoothing
const SMALL = 128;

export class MapView {
  /** `image` is an image of /api/record; `source` the URL of its picture, null if there is none. */
  constructor(image, source) {
    this.image = image;
    const { rows, columns, width, height, map_extent: extent } = image;
    this.canvas = element("canvas", { width: columns, height: rows, "aria-hidden": "true" });
    this.marks = svg("svg", { viewBox: `0 0 ${columns} ${rows}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.readout = element("span", { class: "readout" });
    const over = source !== null && extent !== null;
    this.map = element("div", { class: over ? "map" : "map bare" });
    if (over) {
      const size = Math.max(width, height) <= SMALL ? "small" : null;
      this.map.append(element("img", { src: source, alt: image.name, width, height, class: size }));
      for (const node of [this.canvas, this.marks]) place(node, extent, width, height);
    }
    const [wide, high] = over ? [width, height] : [columns, rows];
    this.map.style.maxWidth = `${Math.round((TALLEST * wide) / high)}px`;
    this.map.append(this.canvas, this.marks);
    const caption = element("figcaption", {}, element("bdi", {}, image.name), this.readout);
    this.node = element("figure", {}, this.map, caption);
    this.marks.addEventListener("pointermove", (event) => this.#read(event));
    this.marks.addEventListener("pointerleave", () => (this.readout.textContent = ""));
  }

  /** Draw values [rows * columns] from `least` to `most`; `top` lists the tokens that are outlined. */
  show(values, { least = 0, most, colours, top = [] }) {
    this.values = values;
    this.top = top;
    paint(this.canvas, values, least, most, colours);
    const { columns } = this.image;
    const outline = (kind) => (token) => {
      const cell = { x: token % columns, y: Math.floor(token / columns), width: 1, height: 1 };
      return svg("rect", { class: kind, "data-token": token, ...cell });
    };
    const area = svg("rect", { class: "cell", x: 0, y: 0, width: columns, height: this.image.rows });
    this.marks.replaceChildren(area, ...top.map(outline("under")), ...top.map(outline("top")));
  }

  set opacity(value) {
    this.canvas.style.opacity = this.map.classList.contains("bare") ? 1 : value;
  }

  #read(event) {
    if (!this.values) return;
    const { rows, columns } = this.image;
    const box = this.marks.getBoundingClientRect();
    const row = Math.min(rows - 1, Math.max(0, Math.floor((rows * (event.clientY - box.top)) / box.height)));
    const column = Math.min(columns - 1, Math.max(0, Math.floor((columns * (event.clientX - box.left)) / box.width)));
    const token = row * columns + column;
    const rank = this.top.indexOf(token);
    const value = `row ${row}, column ${column}: ${figure(this.values[token])}`;
    this.readout.textContent = rank < 0 ? value : `${value}, top ${rank + 1}`;
  }
}

function place(node, [left, right, bottom, top], width, height) {
  const percent = (value) => `${100 * value}%`;
  Object.assign(node.style, {
    left: percent(left / width), top: percent(top / height),
    width: percent((right - left) / width), height: percent((bottom - top) / height),
  });
}

/** One pixel for each value; `colours` has 256 entries [red, green, blue] from `least` to `most`. */
export function paint(canvas, values, least, most, colours) {
  const pixels = new ImageData(canvas.width, canvas.height);
  values.forEach((value, number) => {
    const share = most > least && value !== null ? (value - least) / (most - least) : 0;
    const [red, green, blue] = colours[Math.min(255, Math.max(0, Math.floor(256 * share)))];
    pixels.data.set([red, green, blue, 255], 4 * number);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** A bar of the colours with its ends. */
export function legend(colours, least, most) {
  const canvas = element("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  paint(canvas, [...Array(256).keys()], 0, 255, colours);
  return element("span", { class: "legend" }, figure(least), canvas, figure(most));
}

/** The part of all images' values, or of the top tokens, that belongs to one image. */
export const topOf = (image, top) =>
  top.filter((token) => token >= image.first && token < image.first + image.tokens).map((token) => token - image.first);
