"""Answers about what is open, how far its index is, and how far a running dump is."""

import time
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from alignkd.pipeline.browse.web.asking import Answer, Asked, json_answer
from alignkd.pipeline.browse.web.opened import Browser, OpenedStore

MOST_ERRORS = 200
# of the maps on the pages, and of the pictures of `alignkd shards show --png`
SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"


def state(browser: Browser, asked: Asked) -> Answer:
    """The stores, the progress of their indexes, and the colours of maps."""
    for store in browser.stores:
        store.look_for_more()
    return json_answer(
        {
            "stores": [_described(store) for store in browser.stores],
            "student": None if browser.student is None else str(browser.student),
            "colours": {"sequential": _colours(SEQUENTIAL), "diverging": _colours(DIVERGING)},
        }
    )


def dump(browser: Browser, asked: Asked) -> Answer:
    """Progress of the dump into the store, its workers, and the latest unusable samples with their reasons."""
    from alignkd.pipeline.runs.teacher.dump_status import dump_status
    from alignkd.storage.read.listing import list_unusable

    location = browser.store(asked).location
    status = dump_status(location)
    latest = list(islice(_reversed(list_unusable(location)), MOST_ERRORS))
    errors = [{"shard": shard, "index": one.index, "id": one.id, "reason": one.reason} for shard, one in latest]
    return json_answer({"status": status, "errors": errors, "now": time.time()})


def _reversed(entries: Any) -> Any:
    return reversed(list(entries))


def _described(store: OpenedStore) -> dict[str, Any]:
    manifest = store.reader.manifest
    return {
        "name": store.name,
        "location": str(store.location),
        "records": len(store.reader),
        "quarantined": len(store.reader.quarantined),
        "samples": manifest.num_samples,
        "shards": manifest.num_shards,
        "committed": len(store.reader.commits),
        "complete": store.is_complete,
        "index": store.index.state().as_json(),
    }


@cache
def _colours(name: str) -> list[list[int]]:
    """256 colours [red, green, blue] of a map of matplotlib."""
    from matplotlib import colormaps

    found: list[list[int]] = (colormaps[name](np.arange(256), bytes=True)[:, :3]).tolist()
    return found
