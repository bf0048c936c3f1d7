"""The index of a tar shard made again from the tar alone, byte for byte what the writer wrote.

Checksums are computed from the data that is there: the result says where everything is, not that it is undamaged.
Compare the files' sha256 with the commit record for that (`alignkd shards verify`).
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.local import LocalFile
from alignkd.storage.layouts.tables import NONE
from alignkd.storage.layouts.tar.format import (
    BLOCK,
    COUNTS_MEMBER,
    IMAGE_BYTES,
    IMAGE_SUFFIXES,
    MANIFEST_MEMBER,
    NPY_HEADER,
    array_columns,
    array_header,
    array_suffix,
    closing,
    is_image,
    json_head,
    member_header,
    opening,
    record_name,
    shown_shape,
)
from alignkd.storage.layouts.tar.index import IndexBuilder, TarIndex
from alignkd.storage.layouts.tar.members import Member, TarMembers
from alignkd.storage.schema.columns import OFFSETS, RECORDS, Column, columns_of
from alignkd.storage.schema.manifest import MAX_FILE_BYTES, Manifest, parse_manifest

_NPY_SHAPE = re.compile(rb"'shape': \(((?:\d{1,19}, ?)*\d{0,19})\)")


def rebuild_index(tar: Path) -> bytes:
    """Content of the index file of a tar shard; checksums recomputed, compare with the commit's sha256.

    Nothing in the tar is executed or unpickled; at most one member is in memory.

    Raises:
        CorruptStoreError: a member that no writer writes, a tar that is cut, or one that its closing member
            contradicts; naming file and member.
    """
    return _Rebuild(TarMembers(LocalFile(tar, str(tar)))).run().to_bytes()


@dataclass
class _Record:
    """A record being read: its JSON fields and what its members told."""

    name: str
    document: dict[str, Any]
    rows: dict[str, int]
    start: int
    places: list[tuple[int, int, int]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=lambda: [0, 0])
    image_start: int = 0
    end: int = 0
    width: int = NONE


class _Rebuild:
    def __init__(self, tar: TarMembers) -> None:
        self.tar = tar
        self.manifest, self.opening = self._read_opening()
        columns = columns_of(self.manifest)
        labels = {column.name: column.labels for column in columns}
        self.groups, self.fields = labels[OFFSETS], labels[RECORDS]
        self.arrays = array_columns(columns)
        self.index = IndexBuilder(len(self.groups))
        # record name -> number of the record and row of its image
        self._records: dict[str, int] = {}
        self._image_rows: dict[str, int] = {}
        self._num_images = 0

    def run(self) -> TarIndex:
        member = self.tar.at(len(self.opening))
        while member.name != COUNTS_MEMBER:
            member = self._read_record(member)
        rows = dict(zip(self.groups, self.index.ends.tolist(), strict=True))
        tail = closing(self.index.num_records, self.index.num_members, rows)
        if self.tar.read(member.start, self.tar.file.size - member.start).tobytes() != tail:
            raise self.tar.wrong(member.name, f"does not count {self.index.num_records} records; the tar is not whole")
        return self.index.finish(len(self.fields), 1 + len(self.arrays), self.opening, member.start, tail)

    def _read_opening(self) -> tuple[Manifest, bytes]:
        member = self.tar.at(0)
        if member.name != MANIFEST_MEMBER or member.size > MAX_FILE_BYTES:
            raise self.tar.wrong(member.name, f"is the first member, expected {MANIFEST_MEMBER}")
        document = self.tar.json(member)
        manifest = parse_manifest(document, f"{self.tar.file.label}, member {member.name}")
        expected = opening(manifest)
        if self.tar.read(0, member.end).tobytes() != expected:
            raise self.tar.wrong(member.name, "is not as written")
        return manifest, expected

    def _read_record(self, member: Member) -> Member:
        """One record from its JSON member on; returns the member that follows it."""
        record = self._begin(member)
        member = self.tar.at(member.end)
        image = False
        for column in self.arrays:
            if is_image(column) and not image:
                image, record.image_start = True, record.end
            if self._is(member, record.name, column):
                self._add_array(record, member, column)
                member = self.tar.at(member.end)
            else:
                record.places.append((-1, 0, 0))
        if not image:
            record.image_start = record.end
        self._finish(record)
        return member

    def _begin(self, member: Member) -> _Record:
        name, _, suffix = member.name.partition(".")
        if suffix != "json":
            raise self.tar.wrong(member.name, "is not where a writer puts it, expected a record's .json")
        document, data = self.tar.json(member), self.tar.read(member.content, member.size)
        try:
            source = document["image_record"]
            head = json_head(
                key=bytes.fromhex(document["key"]).hex(),
                id=document["id"],
                index=document["index"],
                image_record=None if source is None else int(source),
            )
            sound = isinstance(document["id"], str) and type(document["index"]) is int
            sound = sound and len(document["key"]) == 64 and record_name(document["index"]) == name
        except (KeyError, TypeError, ValueError, AttributeError):
            sound, head = False, b""
        if not sound or data[: len(head)].tobytes() != head or name in self._records:
            raise self.tar.wrong(member.name, "is not as written")
        record = _Record(name, document, {}, member.start)
        record.rows["text"] = member.size - len(head) + 1
        record.rows["id"] = len(document["id"].encode("utf-8", "surrogatepass"))
        self._add(record, member, b"", 0)
        return record

    def _add_array(self, record: _Record, member: Member, column: Column) -> None:
        if column.name == IMAGE_BYTES:
            shape: tuple[int, ...] = (member.size,)
            header = b""
        else:
            shape = self._shape(member, column)
            header = array_header(column, shape)
        if column.name == "attention":
            record.width = shape[-1]
        record.rows[column.group] = shape[0]
        self._add(record, member, header, int(is_image(column)))

    def _shape(self, member: Member, column: Column) -> tuple[int, ...]:
        """Shape of a record's rows from the .npy header, which must be spelled as written, with this column's dtype."""
        data = self.tar.read(member.content, min(member.size, NPY_HEADER)).tobytes()
        found = _NPY_SHAPE.search(data)
        shown = tuple(int(n) for n in found[1].split(b",") if n.strip()) if found else ()
        # one row is shown without its axis
        shape = shown if shown_shape(column, (1,)) or len(shown) > len(column.row_shape) else (1, *shown)
        fixed = slice(1, -1 if column.variable_width else None)
        if (
            len(shape) != 1 + len(column.row_shape)
            or shape[fixed] != column.row_shape[: -1 if column.variable_width else None]
            or array_header(column, shape) != data
            or NPY_HEADER + int(np.prod(shape, dtype=object)) * column.dtype.itemsize != member.size
        ):
            raise self.tar.wrong(member.name, f"is no array of {column.dtype.str} rows of shape {column.row_shape}")
        return shape

    def _add(self, record: _Record, member: Member, header: bytes, part: int) -> None:
        """Note where a member's data is, and checksums of the data and of the whole member."""
        data = self.tar.read(member.start, member.end - member.start)
        offset, size = BLOCK + len(header), member.size - len(header)
        content = data[offset : offset + size]
        suffix = "json" if not record.places else member.name.partition(".")[2]
        if suffix != "json" and not suffix.endswith(".npy") and suffix != array_suffix(self.arrays[-1], content):
            raise self.tar.wrong(member.name, "does not begin as such a file does")
        if data[:offset].tobytes() != member_header(member.name, member.size) + header or data[offset + size :].any():
            raise self.tar.wrong(member.name, "has a header or padding that is not as written")
        record.places.append((member.start + offset, size, crc32c(content)))
        record.checksums[part] = crc32c(data, record.checksums[part])
        record.end = member.end

    def _finish(self, record: _Record) -> None:
        number, source = self.index.num_records, record.document["image_record"]
        self._records[record.name] = number
        if source is not None and source != record.name and source not in self._image_rows:
            raise self.tar.wrong(
                f"{record.name}.json", f"has image_record {str(source)[:40]!r}, no earlier record's image"
            )
        if source is not None and source not in self._image_rows:
            self._image_rows[source] = self._num_images
            image = record.document.get("image")
            self._num_images += len(image) if isinstance(image, list) else 1
        numbers = {
            "dataset_index": record.document["index"],
            "image_row": NONE if source is None else self._image_rows[source],
            "attention_columns": record.width,
            "image_record": NONE if source is None else self._records[source],
        }
        added = np.array([record.rows.get(group, 0) for group in self.groups], np.int64)
        self.index.add(
            ends=self.index.ends + added,
            numbers=np.array([numbers[name] for name in self.fields], np.int64),
            key=bytes.fromhex(record.document["key"]),
            id=record.document["id"].encode("utf-8", "surrogatepass"),
            parts=(record.start, record.image_start, record.end),
            checksums=(record.checksums[0], record.checksums[1]),
            places=record.places,
        )

    def _is(self, member: Member, name: str, column: Column) -> bool:
        if column.name == IMAGE_BYTES:
            return member.name in {f"{name}.{suffix}" for suffix in IMAGE_SUFFIXES}
        return member.name == f"{name}.{column.name}.npy"
