// A running dump: progress, workers, and unusable samples as they come, the latest first. Polls the server.

import { get, queryOfPage } from "./api.js";
import { byId, element, foreign, problem, svg } from "./dom.js";
import { bytes, count, duration, figure, percent } from "./format.js";
import { onKeys } from "./page.js";

const SECONDS_BETWEEN = 1;
const SECONDS_WHEN_COMPLETE = 15;
const POINTS = 240;
const WORKERS = [
  "worker", "state", "host", "process", "shards", "written", "samples", "per second", "unusable", "tokens", "bytes",
  "halved", "last seen", "left", "message",
];
const ERRORS = ["shard", "index", "id", "reason"];
const TEXTS = new Set(["worker", "state", "host", "message", "id", "reason"]);

const query = queryOfPage();
const rates = [];

async function poll() {
  let wait = SECONDS_BETWEEN;
  try {
    const status = await get("/api/dump", query);
    show(status);
    problem(null);
    if (status.state === "complete") wait = SECONDS_WHEN_COMPLETE;
  } catch (error) {
    problem(error);
  }
  setTimeout(poll, 1000 * wait);
}

function show(status) {
  const name = status.store.split("/").filter(Boolean).at(-1) ?? status.store;
  byId("title").replaceChildren(foreign(name, { title: status.store }), " ", badge(status.state));
  byId("done").value = status.samples ? status.samples_done / status.samples : 1;
  const totals = [
    ["Done", percent(byId("done").value)],
    ["Samples", `${count(status.samples_done)} of ${count(status.samples)}`],
    ["Shards", `${count(status.shards_done)} of ${count(status.shards)}`],
    ["Unusable", count(status.errors)],
    ["Text tokens", count(status.tokens)],
    ["Written", bytes(status.bytes)],
    status.state === "running" && ["Samples per second", figure(status.rate)],
    status.state === "running" && status.seconds_left !== null && ["Left", duration(status.seconds_left)],
  ].filter(Boolean);
  const pair = ([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value));
  byId("totals").replaceChildren(...totals.map(pair));
  showRate(status);
  const workers = status.workers.map((worker) => [
    worker.worker, badge(worker.state), worker.host, worker.pid,
    worker.shards.join(" ") || "–", count(worker.shards_written), count(worker.samples), figure(worker.rate),
    count(worker.errors), count(worker.tokens), bytes(worker.bytes), count(worker.halved),
    `${duration(worker.seconds_since)} ago`,
    worker.seconds_left === null ? "–" : duration(worker.seconds_left), worker.message,
  ]);
  const none = status.state === "complete" ? "The dump is complete." : "No worker has written a status here.";
  table("workers", WORKERS, workers, none);
  table("errors", ERRORS, status.unusable.map((one) => [one.shard, one.index, one.id, one.reason]), "None.");
}

const badge = (state) => element("span", { class: `state ${state}` }, state);

function showRate(status) {
  rates.push(status.rate);
  rates.splice(0, rates.length - POINTS);
  const most = Math.max(...rates);
  const isDrawn = rates.length > 1 && most > 0;
  byId("rate").hidden = !isDrawn;
  if (!isDrawn) return;
  const points = rates.map((rate, number) => `${(600 * number) / (rates.length - 1)} ${68 - (64 * rate) / most}`);
  const line = svg("path", { d: `M${points.join("L")}` });
  const plot = svg("svg", { viewBox: "0 0 600 70", preserveAspectRatio: "none", "aria-hidden": "true" }, line);
  byId("rate").replaceChildren(element("h2", {}, `Samples per second, at most ${figure(most)}`), plot);
}

function table(id, names, rows, empty) {
  const head = names.map((name) => element("th", { scope: "col", class: TEXTS.has(name) ? "left" : null }, name));
  byId(id).tHead.replaceChildren(element("tr", {}, ...head));
  const classes = { reason: "reason wide", message: "left wide" };
  const classOf = (name) => classes[name] ?? (TEXTS.has(name) ? "left" : null);
  const content = (value) => (value instanceof Node ? value : foreign(value));
  const cell = (value, number) => element("td", { class: classOf(names[number]) }, content(value));
  byId(id).classList.toggle("nothing", !rows.length);
  const lines = rows.map((row) => element("tr", {}, ...row.map(cell)));
  const none = element("tr", {}, element("td", { class: "empty", colspan: names.length }, empty));
  byId(id).tBodies[0].replaceChildren(...(lines.length ? lines : [none]));
}

onKeys({});
poll();
