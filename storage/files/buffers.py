"""Memory for what is read, used again once nobody refers to it.

Fresh memory of a few hundred kilobytes comes from the kernel page by page, which takes as long as filling it; what a
training process reads it drops soon.
"""

import math
import sys
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

# smaller arrays the allocator keeps at hand itself; larger ones are rare
SMALLEST, LARGEST = 1 << 15, 1 << 23
# kept by each thread that reads, used or not
KEPT_BYTES = 32 << 20
GRANULE = 1 << 16

_THREAD = threading.local()


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As `numpy.empty`; other views of the memory than the caller's have ended."""
    size = math.prod(shape) * dtype.itemsize
    if not SMALLEST <= size <= LARGEST:
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, _block(size))


def _block(size: int) -> NDArray[np.uint8]:
    try:
        blocks: list[NDArray[np.uint8]] = _THREAD.blocks
    except AttributeError:
        blocks = _THREAD.blocks = []
    most = 2 * size + GRANULE
    for place in range(len(blocks) - 1, -1, -1):  # what was used last is still in the processor's cache
        # every array that shows a block's bytes refers to it; 2: the list, the question
        if size <= len(blocks[place]) <= most and sys.getrefcount(blocks[place]) == 2:
            blocks.append(blocks.pop(place))
            return blocks[-1]
    blocks.append(np.empty(-(-size // GRANULE) * GRANULE, np.uint8))
    while len(blocks) > 1 and sum(map(len, blocks)) > KEPT_BYTES:
        del blocks[0]  # whoever uses it keeps it
    return blocks[-1]
