"""Bounds the image arrays that prepared samples hold on the host.

Large images have large arrays: 25 MB for one megapixel in Qwen3-VL, and two windows of samples are prepared at a time.
Arrays beyond the bound are dropped, and made again for the batch of their sample. Windows, batches and targets do not
depend on the bound.
"""

import threading

IMAGE_ARRAY_BYTES = 4 << 30


class ArrayBudget:
    """Counts the bytes that samples hold; used by several threads.

    Attributes:
        limit: bytes that are held at most, apart from a single sample that is larger.
        held: bytes that are held.
        refused: how often `take` returned False.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.held, self.refused = limit, 0, 0
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> bool:
        """Hold that many bytes more; False if that exceeds the limit."""
        with self._lock:
            fits = not self.held or self.held + num_bytes <= self.limit
            self.held += num_bytes if fits else 0
            self.refused += not fits
            return fits

    def give(self, num_bytes: int) -> None:
        """Hold that many bytes less."""
        with self._lock:
            self.held -= num_bytes
