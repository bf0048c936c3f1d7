"""Reused shared memory between the training process and its data workers.

Each slot is an anonymous file in memory. It has no name, so nothing remains after a crash, and it is not limited by the
size of /dev/shm, which is small in containers. Reuse makes it fast: new shared memory costs a page fault per 4 KiB in
the writer and another one in the reader.
"""

import mmap
import os
import tempfile
import weakref
from collections import deque
from typing import IO

import numpy as np
import torch
from torch import Tensor

ROOM_TO_GROW = 2  # unwritten pages take no memory


class SharedSlots:
    """Blocks of bytes that processes forked AFTER construction can write and this one reads in place.

    A slot belongs to one side at a time: first to the worker that gets its number from `take`, then to the reader. It
    is free again when the last tensor in its memory is deleted.
    """

    def __init__(self, count: int) -> None:
        self._files = [_anonymous_file() for _ in range(count)]
        self._mapped: list[mmap.mmap | None] = [None] * count
        self._free = deque(range(count))

    def take(self) -> int | None:
        """A free slot, or None when all are in use."""
        return self._free.popleft() if self._free else None

    def writable(self, slot: int, num_bytes: int) -> Tensor:
        """A slot's memory for writing, uint8 [at least `num_bytes`]; the slot grows as needed."""
        file = self._files[slot].fileno()
        if os.fstat(file).st_size < num_bytes:
            os.ftruncate(file, ROOM_TO_GROW * num_bytes)
        return torch.frombuffer(self._map(slot, num_bytes), dtype=torch.uint8)

    def read(self, slot: int, num_bytes: int) -> Tensor:
        """The written bytes, uint8 [num_bytes], in place; the slot is free again when no tensor shares this memory."""
        block = np.frombuffer(self._map(slot, num_bytes), np.uint8, count=num_bytes)
        # a tensor keeps the array it was made from, and so do all its views
        weakref.finalize(block, self._free.append, slot).atexit = False
        return torch.from_numpy(block)

    def _map(self, slot: int, num_bytes: int) -> mmap.mmap:
        """The slot mapped into this process, again if another process enlarged it."""
        mapped = self._mapped[slot]
        if mapped is None or len(mapped) < num_bytes:
            mapped = self._mapped[slot] = mmap.mmap(self._files[slot].fileno(), 0)
        return mapped


def _anonymous_file() -> IO[bytes]:
    """A file without a name: in memory, or an unlinked one on the disk if the system has no memory files."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batch"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
