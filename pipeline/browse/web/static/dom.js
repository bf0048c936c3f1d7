// Making elements. Text of a store enters the page here only, as text nodes: no function of these takes HTML.

const SVG = "http://www.w3.org/2000/svg";

/** element("td", {class: "left"}, "text", child, ...): attributes are set by name, functions become listeners. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same for SVG. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.filter((child) => child !== null && child !== undefined).map(asNode));
  return node;
}

const asNode = (child) => (child instanceof Node ? child : document.createTextNode(String(child)));

export const byId = (id) => document.getElementById(id);

/** A text of a store on a line of ours: its direction of writing does not reach beyond it. */
export const foreign = (text, attributes = {}) => element("bdi", attributes, text);

/** Show an error as one line above the page; without one, hide the line. */
export function problem(error) {
  const line = byId("problem");
  line.hidden = !error;
  line.textContent = error ? String(error.message ?? error) : "";
}
