// The tokens of a conversation: supervised ones are marked, text queries can be chosen, predictions are shown in a tip.

import { element, svg } from "./dom.js";
import { pieceShown, pieceText, probability } from "./format.js";

export class Tokens {
  /**
   * `chosen(token)` is called when a text query is clicked. `tip(token)` makes the nodes of a tip, or null.
   * `markOf(token)` gives another class of a token, or null.
   */
  constructor(tokens, { chosen, tip, markOf = () => null }) {
    this.chosen = chosen;
    this.tip = tip;
    this.nodes = new Map();
    this.box = element("div", { class: "tip", role: "tooltip", id: "tip", hidden: true });
    this.node = element("div", { class: "talk" }, ...runs(tokens).map((run) => this.#turn(run, markOf)), this.box);
    this.#stop(0);
    this.node.addEventListener("keydown", (event) => this.#key(event));
    addEventListener("scroll", () => this.#hide(), { passive: true });
  }

  /** Mark the token at a position; null for none. */
  press(position) {
    for (const { node, token } of this.nodes.values()) {
      if (token.is_query) node.setAttribute("aria-pressed", String(token.position === position));
    }
  }

  #turn(run, markOf) {
    const words = element("div", { class: "words", dir: "auto" }, ...run.map((token) => this.#token(token, markOf)));
    const role = element("span", { class: "role" }, run[0].supervised ? "Answer" : "Prompt");
    return element("div", { class: "turn" }, role, words);
  }

  #token(token, markOf) {
    if (token.role === "image") {
      return element("span", { class: "token image" }, `image ${token.image + 1} · ${token.count} tokens`);
    }
    const active = token.is_query || token.supervised;
    const kinds = { query: token.is_query, supervised: token.supervised, special: isSpecial(token.piece) };
    const classes = ["token", ...Object.keys(kinds).filter((kind) => kinds[kind]), markOf(token)];
    const node = element("span", {
      class: classes.filter(Boolean).join(" "),
      "data-position": token.position,
      "data-number": token.number,
      role: active ? "button" : null,
      tabindex: active ? "-1" : null,
      "aria-pressed": token.is_query ? "false" : null,
      "aria-disabled": active && !token.is_query ? "true" : null,
    }, pieceText(token.piece));
    if (!active) return node;
    this.nodes.set(node, { node, token });
    node.addEventListener("click", () => token.is_query && this.chosen(token));
    node.addEventListener("pointerenter", () => this.#show(node));
    node.addEventListener("pointerleave", () => this.#hide());
    node.addEventListener("focus", () => {
      this.#stop([...this.nodes.keys()].indexOf(node));
      if (node.matches(":focus-visible")) this.#show(node);
    });
    node.addEventListener("blur", () => this.#hide());
    return node;
  }

  /** Only one token at a time is reached by Tab; arrows move between them. */
  #stop(number) {
    [...this.nodes.keys()].forEach((node, other) => (node.tabIndex = other === number ? 0 : -1));
  }

  #key(event) {
    const nodes = [...this.nodes.keys()];
    const now = nodes.indexOf(event.target);
    const to = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (now < 0) return;
    if (event.key === "Enter" || event.key === " ") event.target.click();
    else if (event.key === "Escape") this.#hide();
    else if (to !== undefined) nodes[Math.min(Math.max(to, 0), nodes.length - 1)].focus();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #show(node) {
    const shown = this.tip(this.nodes.get(node).token);
    if (!shown) return;
    this.box.replaceChildren(...shown);
    this.box.hidden = false;
    node.setAttribute("aria-describedby", "tip");
    const word = node.getClientRects()[0];
    const { width, height } = this.box.getBoundingClientRect();
    const below = word.bottom + 6 + height < innerHeight;
    this.box.style.left = `${Math.max(8, Math.min(word.left, innerWidth - width - 8))}px`;
    this.box.style.top = `${below ? word.bottom + 6 : Math.max(8, word.top - height - 6)}px`;
  }

  #hide() {
    this.box.hidden = true;
    this.node.querySelector("[aria-describedby]")?.removeAttribute("aria-describedby");
  }
}

/** Neighbouring tokens that are all supervised, or all not. */
function runs(tokens) {
  const found = [];
  for (const token of tokens) {
    if (found.length && found.at(-1).at(-1).supervised === token.supervised) found.at(-1).push(token);
    else found.push([token]);
  }
  return found;
}

const isSpecial = (piece) => /^<[^<>\s]*>$/.test(piece) || /^#\d+$/.test(piece);

/** The most probable tokens of a prediction as a table, the label marked, and the tail. */
export function predictionTable(prediction, caption = null) {
  const known = prediction.top.some(({ id }) => id === prediction.label);
  const row = ({ id, piece, probability: p }) => line(pieceShown(piece), p, id === prediction.label);
  const rows = prediction.top.map(row);
  if (!known) rows.push(line("the label", prediction.label_probability, true));
  if (prediction.tail_mass !== 0) rows.push(line("not stored", prediction.tail_mass, false));
  const rank = prediction.label_rank === null ? "label is not stored" : `label has rank ${prediction.label_rank}`;
  const foot = element("tr", {}, element("td", { class: "left muted", colspan: 3 }, rank));
  const heading = caption === null ? null : element("caption", {}, caption);
  return element("table", {}, heading, element("tbody", {}, ...rows, foot));
}

function line(name, p, isLabel) {
  const length = svg("rect", { width: 80 * (p ?? 0), height: 8, rx: 1 });
  const bar = svg("svg", { viewBox: "0 0 80 8", "aria-hidden": "true" }, length);
  const cells = [
    element("td", { class: "left mono" }, element("bdi", {}, name)),
    element("td", { class: "p" }, bar),
    element("td", {}, probability(p)),
  ];
  return element("tr", { class: isLabel ? "is-label" : null }, ...cells);
}
