"""A new file that grows at its end, in large pieces.

Pieces of a few kilobytes cost more than their system calls: the page cache keeps a file in pages of the size in which
it was written, and copying out of small pages takes twice as long. (758 kB: 100 us from 4 KiB pages, 40 us from large.)
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from alignkd.storage.files.background import Background

Buffer = bytes | NDArray[Any]

PIECE_BYTES = 1 << 18
# after so many bytes the kernel is asked to start writing them to disk, so that fsync waits for little
WRITE_BACK_BYTES = 8 << 20


class AppendFile:
    """Collects bytes and writes them piece by piece; holds one piece, or what is appended at once, in memory.

    Attributes:
        num_bytes: bytes appended so far.
        sha256: hash of the bytes written; after `close` of all bytes.
    """

    def __init__(self, path: Path, piece_bytes: int = PIECE_BYTES, background: Background | None = None) -> None:
        """The file is created exclusively with its first piece; without any bytes it is not created.

        Args:
            background: thread that hashes the pieces while the next ones are made.
        """
        self._piece_bytes, self._background = piece_bytes, background
        self.path, self.num_bytes, self.sha256 = path, 0, hashlib.sha256()
        self._waiting = bytearray()
        self._descriptor: int | None = None
        self._written = self._written_back = 0

    def append(self, data: Buffer) -> None:
        """Add contiguous bytes.

        Raises:
            OSError: the disk is full, or the file exists.
        """
        view = memoryview(data)  # type: ignore[arg-type]  # arrays are buffers
        if view.nbytes:
            self._waiting += view.cast("B")
            self.num_bytes += view.nbytes
        if len(self._waiting) >= self._piece_bytes:
            self._flush()

    def close(self) -> None:
        """Write the rest, without fsync; raises as `append`."""
        try:
            if self._waiting:
                self._flush()
            if self._background is not None:
                self._background.finish()
        finally:
            self.release()

    def release(self) -> None:
        """Close the file descriptor; may be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _flush(self) -> None:
        piece, self._waiting = self._waiting, bytearray()
        if self._background is None:
            self.sha256.update(piece)
        else:
            self._background.do(lambda: self.sha256.update(piece))
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with memoryview(piece) as view:
            done = 0
            while done < len(view):  # a disk that becomes full writes a part before it raises
                done += os.write(self._descriptor, view[done:])
        self._written += done
        if self._written - self._written_back >= WRITE_BACK_BYTES:
            # Linux starts to write dirty pages that are no longer needed
            os.posix_fadvise(self._descriptor, self._written_back, 0, os.POSIX_FADV_DONTNEED)
            self._written_back = self._written
