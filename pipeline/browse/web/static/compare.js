// Two stores, or a teacher and a student, on one sample: both maps and their difference, predictions that differ.

import { get, queryOfPage, viewOf, withQuery } from "./api.js";
import { Choice } from "./choice.js";
import { byId, element, foreign, problem } from "./dom.js";
import { figure, pieceShown, probability } from "./format.js";
import { MapView, legend, topOf } from "./heatmap.js";
import { followState, onKeys } from "./page.js";
import { Tokens, predictionTable } from "./tokens.js";

const key = decodeURIComponent(location.pathname.split("/").at(-1));
const query = queryOfPage();
// total variation distances from which a token has the next shade
const SHADES = [0.01, 0.05, 0.15, 0.35, 0.6];
const MOST_ROWS = 30;

let sides = [];
let colours = null;
let choice = null;
let tokens = null;
let views = [];
let differences = new Map();

async function load() {
  const asked = new URLSearchParams(query.has("with") ? [["with", query.get("with")]] : []);
  const found = await get(`/api/compare/${encodeURIComponent(key)}`, asked);
  sides = found.sides;
  const [first] = sides;
  document.title = `${first.page.id} · compared · alignkd`;
  const names = element("small", {}, foreign(sides[0].name), " and ", foreign(sides[1].name));
  byId("title").replaceChildren(foreign(first.page.id || "–"), names);
  byId("back").href = withQuery("/", viewOf(query));
  byId("record").href = withQuery(`/record/${first.page.position}`, viewOf(query));
  byId("record").hidden = false;
  differences = new Map(found.differences.map((one) => [one.number, one]));
  showChoices(found);
  showConversation(found.notes);
  showDifferences();
  showMaps(found.layers);
  await showAttention();
}

/** Links to compare with the other store or with the student, where there are both. */
function showChoices({ choices, with: wanted }) {
  byId("with").hidden = choices.length < 2;
  const names = { other: "Other store", student: "Student" };
  const links = choices.map((name) => {
    const href = withQuery(location.pathname, new URLSearchParams([...viewOf(query), ["with", name]]));
    return element("a", { class: "button", href, "aria-current": name === wanted ? "true" : null }, names[name]);
  });
  byId("with").replaceChildren(...links);
}

function showConversation(notes) {
  const [first, second] = sides.map(({ page }) => page);
  const others = new Map(second.tokens.map((token) => [token.number, token]));
  tokens = new Tokens(first.tokens, {
    chosen: (token) => choice?.setToken(choice.token === token ? null : token),
    markOf: ({ number }) => shadeOf(differences.get(number)?.total_variation),
    tip: (token) => tipOf(token, others.get(differences.get(token.number)?.other ?? -1)),
  });
  byId("conversation").replaceChildren(tokens.node, ...notes.map((line) => element("p", { class: "note" }, line)));
}

function tipOf(token, other) {
  const tables = [[token, sides[0].name], [other, sides[1].name]]
    .filter(([one]) => one?.prediction)
    .map(([one, name]) => predictionTable(one.prediction, name));
  const attention = differences.get(token.number)?.attention ?? null;
  if (!tables.length) return attention === null ? null : [`attention differs by ${figure(attention)} in all`];
  const distance = differences.get(token.number)?.total_variation ?? null;
  const row = element("div", { class: "row" }, ...tables);
  if (distance === null) return [row];
  return [row, element("div", { class: "muted" }, `total variation distance ${figure(distance)}`)];
}

function shadeOf(distance) {
  const shade = SHADES.filter((least) => distance >= least).length;
  return shade ? `tv${shade}` : null;
}

function showDifferences() {
  const [first, second] = sides.map(({ page }) => new Map(page.tokens.map((token) => [token.number, token])));
  const rows = [...differences.values()].filter(({ total_variation: distance }) => distance !== null);
  rows.sort((one, other) => other.total_variation - one.total_variation);
  const names = ["Token", "Position", "Distance", sides[0].name, sides[1].name];
  const classOf = (number) => (number === 0 || number > 2 ? "left" : null);
  const head = names.map((name, number) => element("th", { scope: "col", class: classOf(number) }, foreign(name)));
  byId("differences").tHead.replaceChildren(element("tr", {}, ...head));
  const best = (token) => {
    const [entry] = token?.prediction?.top ?? [];
    const label = token?.prediction?.label_probability;
    if (!entry) return "–";
    const piece = element("bdi", { class: "mono" }, pieceShown(entry.piece));
    return element("span", {}, piece, ` ${probability(entry.probability)}, label ${probability(label)}`);
  };
  const lines = rows.slice(0, MOST_ROWS).map(({ number, other, total_variation: distance }) => {
    const token = first.get(number);
    return element("tr", { "data-number": number },
      element("td", { class: "left mono" }, foreign(pieceShown(token.piece))),
      element("td", {}, token.position),
      element("td", { class: shadeOf(distance) }, figure(distance)),
      element("td", { class: "left" }, best(token)),
      element("td", { class: "left wide" }, best(second.get(other))),
    );
  });
  byId("differences").classList.toggle("nothing", !lines.length);
  const none = element("td", { class: "empty", colspan: names.length }, "No predictions to compare.");
  byId("differences").tBodies[0].replaceChildren(...(lines.length ? lines : [element("tr", {}, none)]));
}

function showMaps(layers) {
  if (!layers.length) return;
  views = sides[0].page.images.map((image, number) => {
    const source = image.missing === null && image.map_extent !== null
      ? withQuery(`/api/image/${sides[0].page.position}/${number}`, new URLSearchParams())
      : null;
    return [0, 1, 2].map(() => new MapView(image, source));
  });
  const headings = [sides[0].name, sides[1].name, "Difference"];
  const columns = headings.map((name, column) => {
    const maps = views.map((row) => row[column].node);
    return element("div", {}, element("h2", {}, foreign(name)), ...maps, element("div", { class: "scale" }));
  });
  byId("maps").replaceChildren(...columns);
  const faded = (opacity) => views.flat().forEach((view) => (view.opacity = opacity));
  choice = new Choice(layers, sides[0].page.tokens, { changed: () => showAttention().catch(problem), faded });
  faded(choice.opacity);
}

async function showAttention() {
  if (!choice) return;
  tokens.press(choice.token?.position ?? null);
  const asked = choice.parameters().toString();
  const attentionOf = ({ page, query: side }) =>
    get(`/api/attention/${page.position}`, new URLSearchParams([...choice.parameters(), ...new URLSearchParams(side)]));
  const found = await Promise.all(sides.map(attentionOf));
  if (choice.parameters().toString() !== asked) return;
  const values = found.map(({ maps }) => maps.map((one) => one.values));
  const most = Math.max(...values.flat(2));
  const gaps = values[0].map((map, number) => {
    const other = values[1][number];
    return map.length === other?.length ? map.map((value, token) => value - other[token]) : null;
  });
  const widest = Math.max(...gaps.filter(Boolean).flat().map(Math.abs), 0);
  views.forEach((row, number) => {
    [0, 1].forEach((side) => {
      if (values[side][number]?.length === values[0][number].length) {
        const top = topOf(row[side].image, found[side].top);
        row[side].show(values[side][number], { most, colours: colours.sequential, top });
      }
    });
    if (gaps[number]) row[2].show(gaps[number], { least: -widest, most: widest, colours: colours.diverging });
  });
  const scales = [...byId("maps").querySelectorAll(".scale")];
  const legends = [0, 1].map(() => legend(colours.sequential, 0, most));
  legends.push(legend(colours.diverging, -widest, widest));
  scales.forEach((scale, number) => scale.replaceChildren(legends[number]));
  problem(null);
}

onKeys({
  m: () => choice?.setToken(null), u: () => byId("back").click(),
  "]": () => choice?.stepHead(1), "[": () => choice?.stepHead(-1),
});
byId("link").addEventListener("click", () => {
  const done = () => (byId("link").textContent = "Copied");
  navigator.clipboard.writeText(location.href).then(done).catch(problem);
});

let loaded = false;
followState(async (state) => {
  if (loaded) return;
  loaded = true;
  colours = state.colours;
  await load();
}, problem);
