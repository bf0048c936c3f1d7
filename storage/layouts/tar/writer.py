"""Writes one tar shard as its records arrive; see `tar_format` and `tar_index`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.append import AppendFile, Buffer
from alignkd.storage.files.background import Background
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.exclusive import fsync_all
from alignkd.storage.layouts.protocol import WrittenFile, WrittenShard
from alignkd.storage.layouts.tables import NONE
from alignkd.storage.layouts.tar.format import (
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
from alignkd.storage.layouts.tar.index import IndexBuilder
from alignkd.storage.schema.columns import KEYS, OFFSETS, RECORDS, Column
from alignkd.storage.schema.manifest import Manifest


class TarSink:
    """See `alignkd.storage.layouts.protocol.ShardSink`; holds one record and the index in memory."""

    def __init__(self, folder: Path, name: str, manifest: Manifest, columns: Sequence[Column]) -> None:
        self.folder, self.tar, self.idx = folder, f"{name}.tar", f"{name}.idx"
        labels = {column.name: column.labels for column in columns}
        self._groups, self._fields = labels[OFFSETS], labels[RECORDS]
        self._arrays = array_columns(columns)
        self._index = IndexBuilder(len(self._groups))
        self._opening = opening(manifest)
        self._background = Background()
        self._file = AppendFile(folder / self.tar, background=self._background)
        self._file.append(self._opening)

    def append(self, rows: Mapping[str, NDArray[Any]]) -> None:
        numbers = dict(zip(self._fields, rows[RECORDS][0].tolist(), strict=True))
        own, image = _Part(self._file.num_bytes), None
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
        for piece in own.pieces + image.pieces:
            self._file.append(piece)

    def close(self) -> WrittenShard:
        index, tail_start = self._index, self._file.num_bytes
        rows = dict(zip(self._groups, index.ends.tolist(), strict=True))
        tail = closing(index.num_records, index.num_members, rows)
        self._file.append(tail)
        finished = index.finish(len(self._fields), 1 + len(self._arrays), self._opening, tail_start, tail)
        idx = AppendFile(self.folder / self.idx)
        idx.append(finished.to_bytes())
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
