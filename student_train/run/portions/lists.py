"""Lists of samples, written by `alignkd shards select`: the other samples of their stores are not trained on."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.tools.select.selection import Selection
from alignkd.student_train.stores import TrainStore


def read_lists(stores: Sequence[TrainStore]) -> tuple[Selection | None, ...]:
    """The list of each store; None where all samples are trained on.

    Raises:
        StoreError: a list cannot be read.
    """
    return tuple(None if store.samples is None else Selection.read(store.samples) for store in stores)


def left_out(
    lists: Sequence[Selection | None],
    stores: Sequence[TrainStore],
    readers: Sequence[StoreReader],
    held_out: NDArray[np.int64] | None,
) -> NDArray[np.int64]:
    """Positions of samples that are held out, or not in the list of their store, int64, ascending.

    Raises:
        StoreError: a list was made for another store.
    """
    found = [np.zeros(0, np.int64) if held_out is None else held_out]
    starts = accumulate((len(reader) for reader in readers), initial=0)
    for store, chosen, reader, start in zip(stores, lists, readers, starts, strict=False):
        if chosen is not None:
            kept = chosen.positions(reader, f"samples {store.samples}")
            found.append(start + np.setdiff1d(np.arange(len(reader)), kept))
    return np.unique(np.concatenate(found))
