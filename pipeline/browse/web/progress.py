"""Answers about what is open, how far its index is, and how far a running dump is."""

from functools import cache
from typing import Any

import numpy as np

from alignkd.pipeline.browse.web.asking import Answer, Asked, json_answer
from alignkd.pipeline.browse.web.opened import Browser, OpenedStore

# of the maps on the pages, and of the pictures of `alignkd shards show --png`
SEQUENTIAL, DIVERGING = "inferno", "RdBu_r"


def state(browser: Browser, asked: Asked) -> Answer:
    """The stores, the progress of their indexes, and the colours of maps."""
    for store in browser.stores:
        store.look_for_more()
    return json_answer(
        {
            "stores": [_described(store) for store in browser.stores],
            "has_student": browser.has_student,
            "colours": {"sequential": _colours(SEQUENTIAL), "diverging": _colours(DIVERGING)},
        }
    )


def dump(browser: Browser, asked: Asked) -> Answer:
    """Progress of the dump into the store, its workers, and the latest unusable samples with their reasons."""
    return json_answer(browser.store(asked).dump_state().as_json())


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
