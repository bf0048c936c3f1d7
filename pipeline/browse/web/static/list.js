// The list: filters, histograms and rows. The query of the page is the only state; all is drawn from it.

import { get, queryOfPage, setQueryOfPage, viewOf, withQuery } from "./api.js";
import { byId, element, foreign, problem } from "./dom.js";
import { count, counted, figure } from "./format.js";
import { Histogram } from "./histogram.js";
import { followState, onKeys } from "./page.js";

const ROWS = 50;
const DEFAULT_SORT = "index";
// seconds after the last key until a search is sent
const TYPING = 0.2;
const NO_HISTOGRAM = new Set(["position", "index", "shard", "unusable"]);
// shown from the start; the others on request
const FIRST = ["tokens", "supervised", "images", "perplexity", "entropy", "attention_mass", "visual_advantage"];
const IN_TABLE = ["index", "id", "source", ...FIRST];

const query = queryOfPage();
let columns = [];
let histograms = new Map();
let complete = true;
let showsAll = false;
let running = null;

// what was typed and is not in the query yet
let typed = {};
let waiting = 0;

/** As `change`, some time after the last key. */
function type(changes) {
  Object.assign(typed, changes);
  clearTimeout(waiting);
  waiting = setTimeout(() => change({}), 1000 * TYPING);
}

/** Change the query, go to its first page, and draw again. */
function change(changes) {
  clearTimeout(waiting);
  const all = { offset: null, ...typed, ...changes };
  typed = {};
  for (const [name, value] of Object.entries(all)) {
    if (value === null || value === "") query.delete(name);
    else query.set(name, value);
  }
  setQueryOfPage(query);
  refresh();
}

function rangeOf(column) {
  const [low, high] = (query.get(`range.${column}`) ?? "..").split("..");
  return [low, high].map((bound) => (bound === "" || bound === undefined ? null : Number(bound)));
}

function setRange(column, low, high) {
  change({ [`range.${column}`]: low === null && high === null ? null : `${low ?? ""}..${high ?? ""}` });
}

async function refresh() {
  running?.abort();
  running = new AbortController();
  const { signal } = running;
  showFields();
  try {
    const asked = new URLSearchParams([...viewOf(query), ["offset", query.get("offset") ?? 0], ["limit", ROWS]]);
    const rows = get("/api/page", asked, signal).then(showRows);
    const plots = [...histograms].map(async ([name, histogram]) => {
      const parameters = new URLSearchParams([...viewOf(query), ["column", name]]);
      histogram.show(await get("/api/histogram", parameters, signal), rangeOf(name));
    });
    await Promise.all([rows, ...plots]);
    problem(null);
  } catch (error) {
    if (error.name !== "AbortError") problem(error);
  }
}

function showFields() {
  for (const [id, name] of [["search", "q"], ["id", "id"], ["source", "source"]]) {
    if (document.activeElement !== byId(id)) byId(id).value = typed[name] ?? query.get(name) ?? "";
  }
  const shown = query.get("show") ?? "all";
  for (const radio of document.querySelectorAll('#show input')) radio.checked = radio.value === shown;
  const isFiltered = [...query.keys()].some((name) => /^(q|id|source|show|reason|range\..+)$/.test(name));
  byId("clear").hidden = !isFiltered;
  byId("reasons").hidden = shown !== "unusable" || !byId("reasons").childElementCount;
}

function shownColumns() {
  const several = byId("source").options.length > 2;
  const isShown = (name) => IN_TABLE.includes(name) && (name !== "source" || several);
  return columns.filter(({ name, available }) => available && isShown(name));
}

function showHead() {
  const sort = query.get("sort") ?? DEFAULT_SORT;
  const descending = query.get("desc") === "1";
  const cells = shownColumns().map(({ name, label, note, unit, kind }) => {
    const active = name === sort;
    const next = () => change({ sort: name === DEFAULT_SORT ? null : name, desc: active && !descending ? "1" : null });
    const title = [note, unit].filter(Boolean).join("; ") || null;
    const button = element("button", { type: "button", click: next, title });
    button.append(label, active ? (descending ? " ↓" : " ↑") : "");
    const order = active ? (descending ? "descending" : "ascending") : null;
    return element("th", { scope: "col", class: kind === "text" ? "left" : null, "aria-sort": order }, button);
  });
  const focused = [...document.querySelectorAll("#rows th button")].indexOf(document.activeElement);
  byId("rows").tHead.replaceChildren(element("tr", {}, ...cells, element("th", { class: "left" }, "Conversation")));
  if (focused >= 0) document.querySelectorAll("#rows th button")[focused]?.focus();
}

function showRows(page) {
  showHead();
  const last = page.offset + page.rows.length;
  byId("matching").textContent = counted(page.matching, "sample");
  const range = `${count(page.offset + 1)}–${count(last)} of ${count(page.matching)}`;
  byId("shown").textContent = page.rows.length ? range : "";
  byId("before").disabled = page.offset === 0;
  byId("after").disabled = last >= page.matching;
  const shown = shownColumns();
  const body = byId("rows").tBodies[0];
  const active = [...body.rows].findIndex((row) => row.contains(document.activeElement));
  body.replaceChildren(...page.rows.map((row) => rowOf(row, shown)));
  if (!page.rows.length) {
    const line = query.size ? "No sample matches these filters." : "No sample yet.";
    body.append(element("tr", {}, element("td", { class: "empty", colspan: shown.length + 1 }, line)));
  }
  if (active >= 0) focusRow(Math.min(active, page.rows.length - 1));
}

function rowOf(row, shown) {
  const cells = shown.map(({ name, kind }) => {
    const value = row[name];
    if (name === "id") return element("td", { class: "id" }, idOf(row));
    if (kind === "text") return element("td", { class: `left ${name}` }, foreign(value ?? "–", { title: value }));
    const shownValue = name === "index" ? String(value ?? "–") : figure(value);
    return element("td", { class: value === null ? "none" : null }, shownValue);
  });
  const [kind, said] = row.unusable ? ["reason", row.reason] : ["excerpt", row.excerpt];
  const text = element("td", { class: kind }, foreign(said ?? ""));
  const line = element("tr", { "data-index": row.index }, ...cells, text);
  line.addEventListener("click", (event) => {
    if (!event.target.closest("a") && !String(getSelection())) line.querySelector("a")?.click();
  });
  return line;
}

/** The id, as a link to the record; a quarantined sample has no record. */
function idOf(row) {
  const id = foreign(row.id || "–", { title: row.id });
  if (row.position === null) return element("span", { tabindex: "-1" }, id);
  const kept = viewOf(query);
  if (!complete) kept.set("key", row.key); // positions move while a dump runs
  return element("a", { href: withQuery(`/record/${Number(row.position)}`, kept) }, id);
}

const focusable = () => [...document.querySelectorAll("#rows tbody .id > *")];

function focusRow(number) {
  focusable()[number]?.focus();
}

function step(by) {
  const rows = focusable();
  const now = rows.indexOf(document.activeElement);
  focusRow(now < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(now + by, 0), rows.length - 1));
}

function turn(by) {
  const button = byId(by > 0 ? "after" : "before");
  if (button.disabled) return;
  const offset = Number(query.get("offset") ?? 0) + by * ROWS;
  change({ offset: offset > 0 ? offset : null });
}

async function showColumns() {
  const found = await get("/api/columns", viewOf(query));
  columns = found.columns;
  showSources(found.sources);
  showReasons(found.reasons);
  const wanted = columns.filter(
    ({ name, kind, available, minimum, maximum }) =>
      kind !== "text" && available && !NO_HISTOGRAM.has(name) && (minimum < maximum || query.has(`range.${name}`)),
  );
  const first = wanted.filter(({ name }) => showsAll || FIRST.includes(name) || query.has(`range.${name}`));
  const kept = new Map(first.map((column) => [column.name, histogramOf(column)]));
  if ([...kept.keys()].join() !== [...histograms.keys()].join()) {
    byId("histograms").replaceChildren(...[...kept.values()].map(({ node }) => node));
  }
  byId("more").hidden = wanted.length === first.length && !showsAll;
  byId("more").textContent = showsAll ? "Fewer histograms" : "More histograms";
  histograms = kept;
}

/** The histogram of a column, with the range that the column has by now. */
function histogramOf(column) {
  const found = histograms.get(column.name) ?? new Histogram(column, (low, high) => setRange(column.name, low, high));
  found.column = column;
  return found;
}

async function showMore() {
  showsAll = !showsAll;
  await showColumns();
  await refresh();
}

function showSources(sources) {
  const select = byId("source");
  const option = ({ name, count: size }) => element("option", { value: name }, `${name} (${count(size)})`);
  const options = sources.map(option);
  select.replaceChildren(select.options[0], ...options);
  select.value = query.get("source") ?? "";
  select.hidden = sources.length < 2;
}

function showReasons(reasons) {
  const lines = reasons.map(({ name, count: size }) => {
    const isChosen = query.get("reason") === name;
    const choose = async () => {
      change({ reason: isChosen ? null : name });
      await showColumns();
    };
    const attributes = { type: "button", "aria-pressed": String(isChosen), click: choose };
    return element("li", {}, element("button", attributes, element("b", {}, count(size)), foreign(name)));
  });
  byId("reasons").replaceChildren(...(lines.length ? [element("ul", {}, ...lines)] : []));
}

function listen() {
  byId("search").addEventListener("input", () => type({ q: byId("search").value }));
  byId("id").addEventListener("input", () => type({ id: byId("id").value }));
  byId("source").addEventListener("change", () => change({ source: byId("source").value }));
  byId("show").addEventListener("change", ({ target: { value } }) => {
    change({ show: value === "all" ? null : value, reason: null });
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("clear").addEventListener("click", () => {
    const filters = [...viewOf(query).keys()].filter((name) => !/^(sort|desc|store)$/.test(name));
    change(Object.fromEntries(filters.map((name) => [name, null])));
    byId("search").focus();
  });
  byId("more").addEventListener("click", () => showMore().catch(problem));
  byId("before").addEventListener("click", () => turn(-1));
  byId("after").addEventListener("click", () => turn(1));
  const down = () => step(1);
  const up = () => step(-1);
  onKeys({
    j: down, k: up, ArrowDown: down, ArrowUp: up,
    ArrowRight: () => turn(1), ArrowLeft: () => turn(-1), "/": () => byId("search").focus(),
  });
}

listen();
followState(async (state) => {
  const store = state.stores[Number(query.get("store") ?? 0)];
  complete = store?.complete ?? true;
  await showColumns();
  await refresh();
}, problem);
