// What every page does: progress of the index in the header, the dialog of shortcuts, keys.

import { get } from "./api.js";
import { byId, problem } from "./dom.js";
import { count } from "./format.js";

const SECONDS_BETWEEN = 1.5;

/** Calls `told(state)` with the state of the server, again while an index grows or a store is not complete. */
export async function followState(told) {
  const state = await get("/api/state");
  showProgress(state);
  await told(state);
  if (state.stores.some((store) => !store.complete || !isIndexed(store))) {
    setTimeout(() => followState(told).catch(problem), 1000 * SECONDS_BETWEEN);
  }
}

const isIndexed = ({ index }) => index.error || (index.indexed >= index.total && index.figured >= index.total);

function showProgress(state) {
  const store = state.stores.find((one) => !isIndexed(one));
  const index = store?.index;
  const failed = state.stores.find((one) => one.index.error);
  if (failed) problem(failed.index.error);
  byId("indexing").textContent = !index
    ? ""
    : index.indexed < index.total
      ? `indexing ${count(index.indexed)} of ${count(index.total)}`
      : `figures of ${count(index.figured)} of ${count(index.total)}`;
}

/** onKeys({j: action, ...}): keys outside of fields; `Escape` also inside, where it leaves the field. */
export function onKeys(actions) {
  const help = byId("help");
  byId("help-button").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const inField = event.target.matches("input, select, textarea");
    if (inField) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = event.key === "?" ? () => help.showModal() : actions[event.key];
    if (!action || action(event) === false) return;
    event.preventDefault();
  });
}
