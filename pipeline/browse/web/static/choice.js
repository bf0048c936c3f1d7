// The choice of layer, head and token on the pages of a record, kept in the query of the page.

import { queryOfPage, setQueryOfPage } from "./api.js";
import { byId, element } from "./dom.js";
import { pieceShown } from "./format.js";

const MEAN = "mean";
const OPACITY = "alignkd-opacity";

export class Choice {
  /** `changed()` is called when layer, head or token change, `faded(opacity)` when the map's opacity does. */
  constructor(layers, tokens, { changed, faded }) {
    this.layers = layers;
    this.changed = changed;
    this.tokens = new Map(tokens.filter(({ is_query: isQuery }) => isQuery).map((token) => [token.position, token]));
    const query = queryOfPage();
    this.layer = layers.find(({ layer }) => String(layer) === query.get("layer")) ?? layers[0];
    const head = Number(query.get("head") ?? NaN);
    this.head = head >= 0 && head < this.layer.heads ? head : null;
    this.token = this.tokens.get(Number(query.get("query") ?? NaN)) ?? null;
    this.opacity = Number(sessionStorage.getItem(OPACITY) ?? 0.6);
    this.layerField = this.#select("Layer", layers.map(({ layer }) => layer), (value) => this.setLayer(Number(value)));
    this.headField = this.#select("Head", [], (value) => this.setHead(value === MEAN ? null : Number(value)));
    this.said = element("span", { class: "chosen", id: "chosen", role: "status" });
    const toMean = () => this.setToken(null);
    this.reset = element("button", { type: "button", id: "reset", title: "m", click: toMean }, "Show the mean");
    this.legend = element("span");
    const range = { type: "range", min: 0, max: 1, step: 0.05, value: this.opacity };
    const slider = element("input", { ...range, "aria-label": "Opacity of the map" });
    slider.addEventListener("input", () => {
      this.opacity = Number(slider.value);
      sessionStorage.setItem(OPACITY, slider.value);
      faded(this.opacity);
    });
    this.fade = element("label", {}, "Map", slider);
    byId("controls").replaceChildren(...this.#rows());
    this.#show();
  }

  #rows() {
    const fields = [this.layerField, this.headField].map((field) => field.closest("label"));
    return [...fields, this.fade, this.legend, this.said, this.reset];
  }

  /** The choice as parameters of a request. */
  parameters() {
    const found = new URLSearchParams();
    if (this.layer !== this.layers[0]) found.set("layer", this.layer.layer);
    if (this.head !== null) found.set("head", this.head);
    if (this.token !== null) found.set("query", this.token.position);
    return found;
  }

  setLayer(layer) {
    this.layer = this.layers.find((one) => one.layer === layer);
    if (this.head !== null && this.head >= this.layer.heads) this.head = null;
    this.#keep();
  }

  setHead(head) {
    this.head = head;
    this.#keep();
  }

  setToken(token) {
    this.token = token;
    this.#keep();
  }

  /** The next or previous head; the mean is before the first. */
  stepHead(by) {
    const next = (this.head ?? -1) + by;
    if (this.layer.heads) this.setHead(next < 0 ? null : Math.min(next, this.layer.heads - 1));
  }

  #keep() {
    const query = queryOfPage();
    for (const name of ["layer", "head", "query"]) query.delete(name);
    for (const [name, value] of this.parameters()) query.set(name, value);
    setQueryOfPage(query);
    this.#show();
    this.changed();
  }

  #show() {
    this.layerField.value = this.layer.layer;
    this.layerField.closest("label").hidden = this.layers.length < 2;
    const heads = [MEAN, ...Array(this.layer.heads).keys()];
    this.headField.replaceChildren(...heads.map((head) => element("option", { value: head }, head)));
    this.headField.value = this.head ?? MEAN;
    this.headField.closest("label").hidden = heads.length < 2;
    this.reset.hidden = this.token === null;
    if (this.token === null) {
      this.said.textContent = `mean of ${this.tokens.size} tokens`;
      return;
    }
    const piece = element("bdi", { class: "mono" }, pieceShown(this.token.piece));
    this.said.replaceChildren(piece, ` at position ${this.token.position}`);
  }

  #select(name, values, chosen) {
    const options = values.map((value) => element("option", { value }, value));
    const field = element("select", { id: name.toLowerCase(), change: () => chosen(field.value) }, ...options);
    element("label", {}, name, field);
    return field;
  }
}
