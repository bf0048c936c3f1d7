// Requests to the server. The cookie carries the token; the one in the URL is removed from the address line.

export async function get(path, parameters = new URLSearchParams(), signal = undefined) {
  const query = parameters.toString();
  let response;
  try {
    response = await fetch(query ? `${path}?${query}` : path, { signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; start `alignkd shards browse` again");
  }
  const isJson = (response.headers.get("content-type") ?? "").includes("json");
  const found = isJson ? await response.json() : { error: (await response.text()).trim() };
  if (!response.ok) throw new Error(found.error ?? `the server answered ${response.status}`);
  return found;
}

/** Parameters that choose rows and their order; a record page keeps them for its previous and next. */
const VIEW = /^(q|id|source|show|reason|store|sort|desc|range\..+)$/;

/** The part of a query that is the view of the list. */
export function viewOf(parameters) {
  return new URLSearchParams([...parameters].filter(([name, value]) => VIEW.test(name) && value !== ""));
}

/** The query of the page without the token. */
export function queryOfPage() {
  const found = new URLSearchParams(location.search);
  if (found.has("token")) {
    found.delete("token");
    setQueryOfPage(found);
  }
  return found;
}

export function setQueryOfPage(parameters) {
  const query = parameters.toString();
  history.replaceState(null, "", query ? `${location.pathname}?${query}` : location.pathname);
}

export const withQuery = (path, parameters) => (parameters.size ? `${path}?${parameters}` : path);
