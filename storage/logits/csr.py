"""A varying number of entries per supervised position: stored as counts, used as offsets."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError

ENTRY_COUNTS = "entry_counts"
ENTRY_IDS = "entry_ids"
COUNTS_DTYPE = np.dtype("<u4")


def id_dtype(vocab_size: int) -> np.dtype[Any]:
    """uint16 while the vocabulary fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 65536 else np.dtype("<u4")


def offsets_of(counts: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Offsets [N + 1] of the entries of each position, from their counts [N]."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    offsets[1:] = counts
    # in one dtype: numpy takes several times as long for two
    return np.add.accumulate(offsets, out=offsets)


def check_ids(ids: NDArray[Any], vocab_size: int) -> None:
    """Raises:
    RecordError: an id outside the vocabulary.
    """
    if ids.size and int(ids.max()) >= vocab_size:
        raise RecordError(f"logits hold id {int(ids.max())}, expected below vocab_size {vocab_size}")
