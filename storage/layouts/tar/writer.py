"""Writes one tar shard as its records arrive; see `format.py` and `index.py`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.append import AppendFile
from alignkd.storage.files.background import Background
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.exclusive import fsync_all
from alignkd.storage.layouts.protocol import WrittenFile, WrittenShard
from alignkd.storage.layouts.tar.format import Buffer, aligned, closing, json_head, json_member, opening, record_members
from alignkd.storage.layouts.tar.index import IndexBuilder, TarIndex
from alignkd.storage.schema.columns.shard import KEYS, NO_ROW, OFFSETS, RECORDS, Column
from alignkd.storage.schema.manifest import Manifest


class Output(Protocol):
    """Receives the bytes of a tar in order; `num_bytes` counts them."""

    @property
    def num_bytes(self) -> int: ...

    def append(self, data: Buffer) -> None: ...


class TarWriter:
    """Makes the bytes of a tar out of records, and its index; holds one record and the index in memory."""

    def __init__(self, file: Output, manifest: Manifest, columns: Sequence[Column]) -> None:
        labels = {column.name: column.labels for column in columns}
        self._groups, self._fields = labels[OFFSETS], labels[RECORDS]
        self._members = record_members(columns)
        self._index = IndexBuilder(len(self._groups))
        self._opening = opening(manifest)
        self._file = file
        self._file.append(self._opening)

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        numbers = dict(zip(self._fields, rows[RECORDS][0].tolist(), strict=True))
        own, image = _Part(self._file.num_bytes), None
        data: Buffer
        for member in self._members:
            part = own
            if member.of_image:
                part = image = image or _Part(own.end)
            if member.column is None:
                data, shape = self._json(rows, numbers), ()
            elif (values := rows.get(member.name)) is None:
                part.skip()
                continue
            else:
                data, shape = _bytes_of(values, member.column), values.shape
            part.add(member.frame(numbers["dataset_index"], data, shape), data)
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
        for piece in own.pieces + image.pieces:
            self._file.append(piece)

    def finish(self) -> TarIndex:
        """Append the last member and return the index of the whole tar."""
        index, tail_start = self._index, self._file.num_bytes
        rows = dict(zip(self._groups, index.ends.tolist(), strict=True))
        tail = closing(index.num_records, index.num_members, rows)
        self._file.append(tail)
        return index.finish(len(self._fields), len(self._members), self._opening, tail_start, tail)

    def _json(self, rows: Mapping[str, NDArray[Any]], numbers: Mapping[str, int]) -> bytes:
        source = numbers["image_record"]
        if source not in (NO_ROW, self._index.num_records):
            source_index = int(self._index.numbers(source)[self._fields.index("dataset_index")])
        else:
            source_index = numbers["dataset_index"]
        head = json_head(
            key=rows[KEYS].tobytes().hex(),
            id=rows["id"].tobytes().decode("utf-8", "surrogatepass"),
            index=numbers["dataset_index"],
            image_record=None if source == NO_ROW else source_index,
        )
        return json_member(head, rows["text"].tobytes())


class TarSink:
    """See `alignkd.storage.layouts.protocol.ShardSink`."""

    def __init__(self, folder: Path, name: str, manifest: Manifest, columns: Sequence[Column]) -> None:
        self.folder, self.tar, self.idx = folder, f"{name}.tar", f"{name}.idx"
        self._background = Background()
        self._file = AppendFile(folder / self.tar, background=self._background)
        self._writer = TarWriter(self._file, manifest, columns)

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        self._writer.append(rows)

    def close(self) -> WrittenShard:
        idx = AppendFile(self.folder / self.idx)
        idx.append(self._writer.finish().to_bytes())
        files = [self._file, idx]
        for file in files:
            file.close()
        self._background.end()
        fsync_all([self.folder / self.tar, self.folder / self.idx, self.folder])
        return WrittenShard(
            files=[
                WrittenFile(path=file.path.name, num_bytes=file.num_bytes, sha256=file.sha256.hexdigest())
                for file in files
            ]
        )

    def abandon(self) -> None:
        self._background.end()
        self._file.release()


class _Part:
    """Consecutive members of a record, not yet written."""

    def __init__(self, start: int) -> None:
        self.start = self.end = start
        self.pieces: list[Buffer] = []
        self.places: list[tuple[int, int, int]] = []

    def skip(self) -> None:
        """Note that the record does not have the next member."""
        self.places.append((-1, 0, 0))

    def add(self, frame: bytes, data: Buffer) -> None:
        """Add the next member: its headers, its data, padding."""
        offset = self.end + len(frame)
        self.end = aligned(offset + len(data))
        self.pieces += (frame, data, bytes(self.end - offset - len(data)))
        self.places.append((offset, len(data), crc32c(data)))

    def checksum(self) -> int:
        checksum = 0
        for piece in self.pieces:
            checksum = crc32c(piece, checksum)
        return checksum


def _bytes_of(values: NDArray[Any], column: Column) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, column.dtype).reshape(-1).view(np.uint8)
