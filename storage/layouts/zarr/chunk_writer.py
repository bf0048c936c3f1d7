"""Writes one zarr sharding file (see `chunk_file.py`) as its rows arrive."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.append import PIECE_BYTES, AppendFile
from alignkd.storage.files.background import Background
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.layouts.zarr.chunk_file import CRC_BYTES, MISSING
from alignkd.storage.schema.commit_record import ArrayLayout, Shape

LARGE_CHUNK_BYTES = 1 << 15
# pieces that are written without a second thread, because handing them over takes longer
SMALL_PIECE_BYTES = 1 << 16


class ShardingFileWriter:
    """Appends rows to one array; holds one row of chunks and one unwritten piece in memory."""

    def __init__(
        self,
        path: Path,
        dtype: np.dtype[Any],
        chunk: Shape,
        variable_width: bool = False,
        background: Background | None = None,
    ) -> None:
        self.path, self.chunk, self.variable_width = path, chunk, variable_width
        self.num_rows = 0
        # there are many files of small chunks, and they hold a small part of a record
        small = math.prod(chunk) * dtype.itemsize < LARGE_CHUNK_BYTES
        self._file = AppendFile(path, *((SMALL_PIECE_BYTES, None) if small else (PIECE_BYTES, background)))
        self._width = 0 if variable_width else (chunk[-1] if len(chunk) > 1 else 1)
        self._block = np.zeros(chunk, dtype)
        self._filled = 0
        # of each chunk and, when closed, of the index; big-endian, so that their hex digits read as numbers
        self.checksums = bytearray()
        self._index: list[list[tuple[int, int]]] = []

    @property
    def num_bytes(self) -> int:
        """Length of the file so far."""
        return self._file.num_bytes

    @property
    def sha256(self) -> str:
        """sha256 of the closed file, in hex."""
        return self._file.sha256.hexdigest()

    def append(self, rows: NDArray[Any]) -> None:
        """Add rows; complete chunks are written at once."""
        while len(rows):
            if self.variable_width:
                self._widen(rows.shape[-1])
            elif not self._filled and len(rows) >= len(self._block) and rows.dtype == self._block.dtype:
                rows = self._append_chunk(rows)  # a complete chunk: no copy
                continue
            take = min(len(rows), len(self._block) - self._filled)
            target = self._block[self._filled : self._filled + take]
            (target[..., : rows.shape[-1]] if rows.ndim > 1 else target)[...] = rows[:take]
            self._filled += take
            self.num_rows += take
            rows = rows[take:]
            if self._filled == len(self._block):
                self._flush()

    def close(self) -> ArrayLayout:
        """Write the rest and the index, without fsync; an array without rows has no file."""
        if self._filled:
            self._flush()
        width = () if len(self.chunk) == 1 else (self._width,)
        layout = ArrayLayout((self.num_rows, *self.chunk[1:-1], *width), self.chunk)
        if self._index:
            index = np.full((*layout.grid, 2), MISSING, "<u8")
            for row, chunks in enumerate(self._index):
                index[row, : len(chunks)] = chunks
            self._file.append(index)
            self._file.append(self._checksum(index))
        self._file.close()
        return layout

    def release(self) -> None:
        """Close the file descriptor; may be called twice."""
        self._file.release()

    def _append_chunk(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Write the first rows as one chunk and return the others."""
        take = len(self._block)
        self._index.append([self._write_chunk(rows[:take])])
        self.num_rows += take
        return rows[take:]

    def _widen(self, width: int) -> None:
        self._width = max(self._width, width)
        missing = -(-width // self.chunk[-1]) * self.chunk[-1] - self._block.shape[-1]
        if missing > 0:
            self._block = np.pad(self._block, [(0, 0)] * (self._block.ndim - 1) + [(0, missing)])

    def _flush(self) -> None:
        step = self.chunk[-1]
        wide = len(self.chunk) > 1
        starts = range(0, self._block.shape[-1], step) if wide else range(1)
        self._index.append(
            [self._write_chunk(self._block[..., at : at + step] if wide else self._block) for at in starts]
        )
        if self._block.shape == self.chunk:
            self._block.fill(0)
        else:
            self._block = np.zeros(self.chunk, self._block.dtype)
        self._filled = 0

    def _write_chunk(self, chunk: NDArray[Any]) -> tuple[int, int]:
        start = self.num_bytes
        data = np.ascontiguousarray(chunk)
        self._file.append(data)
        self._file.append(self._checksum(data))
        return start, self.num_bytes - start

    def _checksum(self, data: NDArray[Any]) -> bytes:
        checksum = crc32c(data)
        self.checksums += checksum.to_bytes(CRC_BYTES, "big")
        return checksum.to_bytes(CRC_BYTES, "little")
