// One record: its images under the attention of a token, and its conversation with the teacher's predictions.

import { get, queryOfPage, viewOf, withQuery } from "./api.js";
import { Choice } from "./choice.js";
import { byId, element, foreign, problem } from "./dom.js";
import { counted, figure } from "./format.js";
import { MapView, legend, paint, topOf } from "./heatmap.js";
import { followState, onKeys } from "./page.js";
import { Tokens, predictionTable } from "./tokens.js";

const position = Number(location.pathname.split("/").at(-1));
const query = queryOfPage();
let colours = null;
let choice = null;
let views = [];
let tokens = null;
let record = null;

/** What names the record, for every request. */
function named(more = []) {
  const found = new URLSearchParams(more);
  for (const name of ["store", "key"]) if (query.has(name)) found.set(name, query.get(name));
  return found;
}

async function load() {
  const view = viewOf(query);
  byId("back").href = withQuery("/", view);
  record = await get(`/api/record/${position}`, named());
  document.title = `${record.id} · alignkd`;
  byId("title").replaceChildren(foreign(record.id || "–"), element("small", {}, `index ${record.index}`));
  showConversation();
  showDetails();
  showImages();
  await Promise.all([showAttention(), showNeighbours(view)]);
}

function showConversation() {
  const caption = record.is_estimate ? "shares of the draws" : null;
  tokens = new Tokens(record.tokens, {
    chosen: (token) => choice?.setToken(choice.token === token ? null : token),
    tip: ({ prediction }) => (prediction ? [predictionTable(prediction, caption)] : null),
  });
  byId("conversation").replaceChildren(tokens.node);
  if (record.no_predictions) byId("conversation").append(note(`No predictions: ${record.no_predictions}`));
  const found = [
    ["Perplexity", record.perplexity], ["Visual advantage", record.advantage], ["Positions", record.sequence_length],
    ["Labels", record.tokens.filter(({ supervised }) => supervised).length],
  ];
  const shown = found.filter(([, value]) => value !== null && value !== undefined);
  const pair = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, figure(value)));
  byId("figures").replaceChildren(element("dl", { class: "figures" }, ...shown.map(pair)));
}

function showDetails() {
  const rows = [
    ["index", record.index], ["key", record.key], ["data set", record.source],
    ...record.images.flatMap((image) => [["image", image.name], ["sha256", image.sha256]]),
    ...record.turns.map((turn) => [turn.from, turn.value]),
  ];
  byId("details").querySelector("dl").replaceChildren(
    ...rows.flatMap(([name, value]) => [element("dt", {}, foreign(name)), element("dd", {}, foreign(value))]),
  );
}

function showImages() {
  views = record.images.map((image, number) => {
    const source = image.missing === null ? withQuery(`/api/image/${record.position}/${number}`, named()) : null;
    return new MapView(image, image.map_extent === null ? null : source);
  });
  const missing = record.images.filter((image) => image.missing !== null).map((image) => note(image.missing));
  byId("images").replaceChildren(...views.map(({ node }) => node), ...missing);
  if (!record.layers.length) {
    byId("images").append(note(`No attention to show: ${record.no_attention}`));
    views.forEach((view) => view.canvas.remove());
    return;
  }
  const faded = (opacity) => views.forEach((view) => (view.opacity = opacity));
  choice = new Choice(record.layers, record.tokens, { changed: () => showAttention().catch(problem), faded });
  faded(choice.opacity);
}

async function showAttention() {
  if (!choice) return;
  const asked = named([...choice.parameters()]);
  tokens.press(choice.token?.position ?? null);
  showLinks();
  const found = await get(`/api/attention/${record.position}`, asked);
  if (asked.toString() !== named([...choice.parameters()]).toString()) return; // another was chosen meanwhile
  const most = Math.max(...found.maps.flatMap(({ values }) => values));
  views.forEach((view, number) => {
    view.show(found.maps[number].values, { most, colours: colours.sequential, top: topOf(view.image, found.top) });
  });
  choice.legend.replaceChildren(legend(colours.sequential, 0, most));
  problem(null);
  await showHeads();
}

/** A small map of each head; a click chooses it. */
async function showHeads() {
  const asked = named([...choice.parameters()]);
  asked.delete("head");
  const key = asked.toString();
  if (showHeads.shown !== key) {
    const { heads } = await get(`/api/heads/${record.position}`, asked);
    showHeads.shown = key;
    const buttons = heads.map((maps, head) => {
      const press = () => choice.setHead(choice.head === head ? null : head);
      const most = Math.max(...maps.flatMap(({ values }) => values));
      const small = maps.map(({ rows, columns, values }) => {
        const canvas = element("canvas", { width: columns, height: rows });
        paint(canvas, values, 0, most, colours.sequential);
        return canvas;
      });
      return element("button", { type: "button", click: press, "aria-label": `Head ${head}` }, ...small, String(head));
    });
    byId("heads").replaceChildren(...buttons);
  }
  [...byId("heads").children].forEach((button, head) => {
    button.setAttribute("aria-pressed", String(head === choice.head));
  });
}

function showLinks() {
  const kept = choice.parameters();
  byId("png").hidden = false;
  byId("png").href = withQuery(`/api/view/${record.position}.png`, named([...kept]));
  byId("png").setAttribute("download", `record-${record.index}.png`);
  const layerAndHead = [...kept].filter(([name]) => name !== "query");
  for (const link of [byId("previous"), byId("next")]) {
    if (!link.dataset.position) continue;
    link.href = withQuery(`/record/${link.dataset.position}`, new URLSearchParams([...viewOf(query), ...layerAndHead]));
  }
}

async function showNeighbours(view) {
  const found = await get("/api/neighbours", new URLSearchParams([...view, ["position", record.position]]));
  for (const id of ["previous", "next"]) {
    const link = byId(id);
    const other = found[id];
    link.setAttribute("aria-disabled", String(other === null));
    if (other === null) continue;
    link.dataset.position = other;
    link.href = withQuery(`/record/${other}`, view);
  }
  if (choice) showLinks();
}

const note = (text) => element("p", { class: "note" }, text);

async function copyLink() {
  const link = new URL(location.href);
  link.searchParams.set("key", record.key); // the position may move while a dump runs
  await navigator.clipboard.writeText(link.href);
  byId("link").textContent = "Copied";
  setTimeout(() => (byId("link").textContent = "Copy link"), 1500);
}

const follow = (id) => () => (byId(id).href ? byId(id).click() : false);

onKeys({
  j: follow("next"), k: follow("previous"), ArrowRight: follow("next"), ArrowLeft: follow("previous"),
  u: follow("back"),
  m: () => choice?.setToken(null), "]": () => choice?.stepHead(1), "[": () => choice?.stepHead(-1),
});
byId("link").addEventListener("click", () => copyLink().catch(problem));

let loaded = false;
followState(async (state) => {
  if (loaded) return;
  loaded = true;
  colours = state.colours;
  await load();
  if (state.stores.length > 1 || state.has_student) {
    byId("compare").hidden = false;
    byId("compare").href = withQuery(`/compare/${record.key}`, viewOf(query));
  }
}, problem);
