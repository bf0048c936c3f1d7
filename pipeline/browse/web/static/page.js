// What every page does: progress of the index in the header, the dialog of shortcuts, keys.

import { get } from "./api.js";
import { byId } from "./dom.js";
import { count, counted } from "./format.js";

const SECONDS_BETWEEN = 1.5;

/** Calls `told(state)` with the state of the server, again while an index grows or a store is not complete. */
export async function followState(told, failed) {
  try {
    const state = await get("/api/state");
    showProgress(state.stores);
    await told(state);
    if (state.stores.every(({ complete, index }) => complete && !index.running)) return;
  } catch (error) {
    failed(error);
  }
  setTimeout(() => followState(told, failed), 1000 * SECONDS_BETWEEN);
}

function showProgress(stores) {
  const growing = stores.find(({ index }) => index.running)?.index;
  const problems = stores.flatMap(({ index }) => index.problems);
  const line = byId("indexing");
  line.title = problems.join("\n");
  line.classList.toggle("wrong", problems.length > 0);
  const said = problems.length ? [counted(problems.length, "problem")] : [];
  if (growing) {
    const { indexed, figured, total } = growing;
    const [what, done] = indexed < total ? ["indexing", indexed] : ["figures of", figured];
    said.push(`${what} ${count(done)} of ${count(total)}`);
  }
  line.textContent = said.join(" · ");
}

/** onKeys({j: action, ...}): keys outside of fields; in a field, Escape leaves it. */
export function onKeys(actions) {
  const help = byId("help");
  byId("help-button").addEventListener("click", () => help.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    if (event.target.matches("input, select, textarea")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const action = event.key === "?" ? () => help.showModal() : actions[event.key];
    if (!action || action(event) === false) return;
    event.preventDefault();
  });
}
