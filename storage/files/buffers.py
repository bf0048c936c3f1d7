"""Memory for what is read, reused when no array refers to it.

Fresh memory of a few hundred kilobytes comes from the kernel page by page, which takes as long as filling it, and a
training process soon drops what it reads.
"""

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

# the allocator itself keeps smaller arrays at hand; larger ones are rare
SMALLEST, LARGEST = 1 << 15, 1 << 23
# each reading thread keeps at most so much, used or not
KEPT_BYTES = 32 << 20
GRANULE = 1 << 16

_THREAD = threading.local()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `numpy.empty`; no other array shows the memory."""
    size = math.prod(shape) * dtype.itemsize
    if _UNUSED is None or not SMALLEST <= size <= LARGEST:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _block(size))


def _block(size: int) -> NDArray[np.uint8]:
    try:
        blocks: list[NDArray[np.uint8]] = _THREAD.blocks
    except AttributeError:
        blocks = _THREAD.blocks = []
    most = 2 * size + GRANULE
    for place in range(len(blocks) - 1, -1, -1):  # the block used last is still in the processor's cache
        # every array that shows a block's bytes refers to it
        if size <= len(blocks[place]) <= most and sys.getrefcount(blocks[place]) == _UNUSED:
            blocks.append(blocks.pop(place))
            return blocks[-1]
    blocks.append(np.empty(-(-size // GRANULE) * GRANULE, np.uint8))
    while len(blocks) > 1 and sum(map(len, blocks)) > KEPT_BYTES:
        del blocks[0]  # arrays that show it keep it
    return blocks[-1]


def _references_of_unused() -> int | None:
    """What `sys.getrefcount` gives for a block that only its list refers to.

    None where the count is not exact, so that no memory may be reused: without a global interpreter lock, and outside
    of CPython.
    """
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if sys.implementation.name != "cpython" or not has_lock:
        return None
    blocks, place = [np.empty(1, np.uint8)], 0
    return sys.getrefcount(blocks[place])


_UNUSED = _references_of_unused()
