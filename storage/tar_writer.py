"""Writes one tar shard as its records arrive; see `tar_format` and `tar_index`."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.backend import WrittenFile, WrittenShard
from storage.checksum import crc32c
from storage.columns import KEYS, OFFSETS, RECORDS, Column
from storage.files import fsync_all
from storage.manifest import Manifest
from storage.shard_tables import NONE
from storage.tar_format import (
    aligned,
    array_columns,
    array_header,
    array_suffix,
    closing,
    is_image,
    json_head,
    json_member,
    member_header,
    opening,
    record_name,
)
from storage.tar_index import IndexBuilder

# write calls take this many pieces at once (IOV_MAX)
MAX_PIECES = 1024
Buffer = bytes | NDArray[np.uint8]


class TarSink:
    """See `storage.backend.ShardSink`; holds one record and the index in memory."""

    def __init__(self, folder: Path, name: str, manifest: Manifest, columns: Sequence[Column]) -> None:
        self.folder, self.tar, self.idx = folder, f"{name}.tar", f"{name}.idx"
        labels = {column.name: column.labels for column in columns}
        self._groups, self._fields = labels[OFFSETS], labels[RECORDS]
        self._arrays = array_columns(columns)
        self._index = IndexBuilder(len(self._groups))
        self._opening = opening(manifest)
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._descriptor: int | None = os.open(folder / self.tar, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._write([self._opening])

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        numbers = dict(zip(self._fields, rows[RECORDS][0].tolist(), strict=True))
        own, image = _Part(self._num_bytes), None
        own.add(f"{record_name(numbers['dataset_index'])}.json", b"", self._json(rows, numbers))
        for column in self._arrays:
            part = own
            if is_image(column):
                part = image = image or _Part(own.end)
            self._add_array(part, column, rows.get(column.name), numbers["dataset_index"])
        image = image or _Part(own.end)
        self._index.add(
            ends=rows[OFFSETS][0],
            numbers=rows[RECORDS][0],
            key=rows[KEYS].tobytes(),
            id=rows["id"].tobytes(),
            parts=(own.start, image.start, image.end),
            checksums=(own.checksum(), image.checksum()),
            places=own.places + image.places,
        )
        self._write(own.pieces + image.pieces)

    def close(self) -> WrittenShard:
        index, tail_start = self._index, self._num_bytes
        rows = dict(zip(self._groups, index.ends.tolist(), strict=True))
        tail = closing(index.num_records, index.num_members, rows)
        self._write([tail])
        tar = WrittenFile(path=self.tar, num_bytes=self._num_bytes, sha256=self._sha256.hexdigest())
        self.abandon()
        finished = index.finish(len(self._fields), 1 + len(self._arrays), self._opening, tail_start, tail)
        data = finished.to_bytes()
        self._descriptor = os.open(self.folder / self.idx, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self._write([data])
        self.abandon()
        fsync_all([self.folder / self.tar, self.folder / self.idx, self.folder])
        idx = WrittenFile(path=self.idx, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        return WrittenShard(files=[tar, idx])

    def abandon(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _json(self, rows: Mapping[str, NDArray[Any]], numbers: Mapping[str, int]) -> bytes:
        source = numbers["image_record"]
        if source not in (NONE, self._index.num_records):
            source_index = int(self._index.numbers(source)[self._fields.index("dataset_index")])
        else:
            source_index = numbers["dataset_index"]
        head = json_head(
            key=rows[KEYS].tobytes().hex(),
            id=rows["id"].tobytes().decode("utf-8", "surrogatepass"),
            index=numbers["dataset_index"],
            image_record=None if source == NONE else source_index,
        )
        return json_member(head, rows["text"].tobytes())

    def _add_array(self, part: "_Part", column: Column, rows: NDArray[Any] | None, index: int) -> None:
        if rows is None:
            part.places.append((-1, 0, 0))
            return
        data = np.ascontiguousarray(rows, column.dtype).reshape(-1).view(np.uint8)
        name = f"{record_name(index)}.{array_suffix(column, data)}"
        part.add(name, array_header(column, rows.shape), data)

    def _write(self, pieces: Sequence[Buffer]) -> None:
        assert self._descriptor is not None
        waiting = [memoryview(piece) for piece in pieces if len(piece)]  # type: ignore[arg-type]  # arrays are buffers
        for piece in waiting:
            self._sha256.update(piece)
        while waiting:  # a disk that fills up takes a part first and refuses the rest
            written = os.writev(self._descriptor, waiting[:MAX_PIECES])
            self._num_bytes += written
            while waiting and written >= len(waiting[0]):
                written -= len(waiting.pop(0))
            if written:
                waiting[0] = waiting[0][written:]


class _Part:
    """Consecutive members of a record, not yet written."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.pieces: list[Buffer] = []
        self.places: list[tuple[int, int, int]] = []

    def add(self, name: str, header: bytes, data: Buffer) -> None:
        """One member: tar header, the data's own header, data, padding."""
        frame = member_header(name, len(header) + len(data)) + header
        offset = self.end + len(frame)
        self.end = aligned(offset + len(data))
        self.pieces += (frame, data, bytes(self.end - offset - len(data)))
        self.places.append((offset, len(data), crc32c(data)))

    def checksum(self) -> int:
        checksum = 0
        for piece in self.pieces:
            checksum = crc32c(piece, checksum)
        return checksum
