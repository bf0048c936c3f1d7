"""Rebuilds the index of a tar shard from the tar alone, byte for byte as the writer wrote it.

Every record is read out of the tar and given to the writer again. The bytes that the writer makes are compared with the
tar and thrown away; the index remains. Its checksums are those of the data in the tar: the index states where
everything is, not that it is undamaged. Compare its sha256 with the commit record for that.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.layouts.tar.format import (
    COUNTS_MEMBER,
    IMAGE_SUFFIXES,
    MANIFEST_MEMBER,
    NPY,
    NPY_HEADER,
    Buffer,
    json_head,
    record_members,
    record_name,
    text_rows,
)
from alignkd.storage.layouts.tar.members import TarMembers
from alignkd.storage.layouts.tar.writer import TarWriter
from alignkd.storage.record.record import IMAGE_TOKEN_ID
from alignkd.storage.schema.columns.shard import (
    ATTENTION_COLUMNS,
    IMAGE_BYTES,
    IMAGE_TOKENS,
    KEYS,
    NO_ROW,
    OFFSETS,
    RECORDS,
    Column,
    columns_of,
)

Rows = dict[str, NDArray[Any]]
_NO_IDS = np.empty(0, np.int32)
_NPY_SHAPE = re.compile(rb"'shape': \(((?:\d{1,19}, ?)*\d{0,19})\)")


def rebuild_index(tar: Path) -> bytes:
    """Content of the index file of a tar shard.

    Nothing in the tar is executed; one record is in memory at a time.

    Raises:
        CorruptStoreError: the tar is not what the writer makes of its records: a member that does not belong there, a
            header that is spelled otherwise, an end that is missing. Names the file and the member.
    """
    members = TarMembers(tar)
    manifest = members.read_manifest()
    columns = columns_of(manifest)
    compared = _ComparedBytes(members)
    writer = TarWriter(compared, manifest, columns)
    records = _Records(members, columns)
    for name, contents in members.records():
        rows = records.rows(name, contents)
        compared.what = f"{name}.json"
        writer.append(rows)
    compared.what = COUNTS_MEMBER
    index = writer.finish()
    if index.tar_bytes != members.file.size:
        raise members.wrong(compared.what, f"is followed by {members.file.size - index.tar_bytes} bytes")
    return index.to_bytes()


class _ComparedBytes:
    """Compares what a writer appends with the tar, and keeps nothing.

    Attributes:
        what: the member that is being written, for messages.
    """

    def __init__(self, members: TarMembers) -> None:
        self._members = members
        self.num_bytes = 0
        self.what = MANIFEST_MEMBER

    def append(self, data: Buffer) -> None:
        found = self._members.read(self.num_bytes, len(data))
        if found.tobytes() != bytes(data):
            raise self._members.wrong(self.what, f"or one after it is not as written, from byte {self.num_bytes} on")
        self.num_bytes += len(data)


class _Records:
    """Turns the members of records into rows of columns and of the tables, in the order of the records."""

    def __init__(self, members: TarMembers, columns: Sequence[Column]) -> None:
        self._members = members
        labels = {column.name: column.labels for column in columns}
        self._fields = labels[RECORDS]
        self._groups = {column.name: column.group for column in columns}
        self._width_fields = {column.name: column.width_field for column in columns if column.variable_width}
        self._columns = [member.column for member in record_members(columns) if member.column is not None]
        self._ends = dict.fromkeys(labels[OFFSETS], 0)
        self._numbers: dict[str, int] = {}
        # name of the record that brought an image -> row of the image in the shard
        self._image_rows: dict[str, int] = {}
        self._num_images = 0

    def rows(self, name: str, contents: dict[str, Buffer]) -> Rows:
        """The rows of a record; `contents`: content of each member by what follows the record's name."""
        if "json" not in contents or name in self._numbers:
            raise self._members.wrong(f"{name}.json", "is missing or there twice")
        document = self._members.json(f"{name}.json", contents["json"])
        rows = self._text_rows(name, document, np.frombuffer(contents["json"], np.uint8))
        for column in self._columns:
            suffixes = IMAGE_SUFFIXES if column.name == IMAGE_BYTES else (column.name + NPY,)
            for suffix in suffixes:
                if suffix in contents:
                    rows[column.name] = self._array(f"{name}.{suffix}", contents[suffix], column)
        return rows | self._tables(name, document, rows)

    def _text_rows(self, name: str, document: dict[str, Any], content: NDArray[np.uint8]) -> Rows:
        try:
            key, id = bytes.fromhex(document["key"]), document["id"].encode("utf-8", "surrogatepass")
            index, source = document["index"], document["image_record"]
            image_record = None if source is None else int(source)
            head = json_head(key=key.hex(), id=document["id"], index=index, image_record=image_record)
            sound = type(index) is int and record_name(index) == name and len(key) == 32 and len(content) >= len(head)
        except (KeyError, TypeError, ValueError, AttributeError):
            sound = False
        if not sound:
            raise self._members.wrong(f"{name}.json", "is not as written")
        return {
            KEYS: np.frombuffer(key, np.uint8).reshape(1, 32),
            "id": np.frombuffer(id, np.uint8),
            "text": text_rows(content, len(content) - len(head) + 1),
        }

    def _array(self, member: str, content: Buffer, column: Column) -> NDArray[Any]:
        """Rows of an array; dtype and spelling of the .npy header are compared later, with what the writer writes."""
        if column.name == IMAGE_BYTES:
            return np.frombuffer(content, np.uint8)
        found = _NPY_SHAPE.search(bytes(content[:NPY_HEADER]))
        shown = tuple(int(n) for n in found[1].split(b",") if n.strip()) if found else ()
        # one row may be shown without its axis
        shape = shown if len(shown) > len(column.row_shape) else (1, *shown)
        fixed = slice(0, -1 if column.variable_width else None)
        if (
            len(shape) != 1 + len(column.row_shape)
            or shape[1:][fixed] != column.row_shape[fixed]
            or NPY_HEADER + math.prod(shape) * column.dtype.itemsize != len(content)
        ):
            raise self._members.wrong(member, f"is not an array of {column.dtype.str} rows of shape {column.row_shape}")
        return np.frombuffer(content, column.dtype, offset=NPY_HEADER).reshape(shape)

    def _tables(self, name: str, document: dict[str, Any], rows: Rows) -> Rows:
        """The record's rows of the shard's tables; see `ShardWriter`, which counts in the same way."""
        source = document["image_record"]
        self._numbers[name] = len(self._numbers)
        if source == name and source not in self._image_rows:
            self._image_rows[name] = self._num_images
            image = document.get("image")
            self._num_images += len(image) if isinstance(image, list) else 1
        if source is not None and source not in self._image_rows:
            problem = f"has image_record {str(source)[:40]!r}, which is not an earlier record with an image"
            raise self._members.wrong(f"{name}.json", problem)
        added = {self._groups[column]: len(values) for column, values in rows.items()}
        self._ends = {group: end + added.get(group, 0) for group, end in self._ends.items()}
        numbers = {
            "dataset_index": document["index"],
            "image_row": NO_ROW if source is None else self._image_rows[source],
            "image_record": NO_ROW if source is None else self._numbers[source],
            "num_images": len(rows[IMAGE_TOKENS]) if IMAGE_TOKENS in rows else 0,
            "length": _length(rows),
        }
        numbers |= {
            field: rows[name].shape[-1] if name in rows else NO_ROW for name, field in self._width_fields.items()
        }
        # of fixed width, but its width is in the table too
        numbers[ATTENTION_COLUMNS] = rows["attention"].shape[-1] if "attention" in rows else NO_ROW
        return {
            OFFSETS: np.array([list(self._ends.values())], "<i8"),
            RECORDS: np.array([[numbers[field] for field in self._fields]], "<i8"),
        }


def _length(rows: Rows) -> int:
    """L, from the ids and the vision positions; see `Record.sequence_length`."""
    ids, vision = (rows.get(name, _NO_IDS) for name in ("input_ids", "vision_positions"))
    placeholders = int(np.count_nonzero(ids == IMAGE_TOKEN_ID))
    return len(ids) + (len(vision) - placeholders if placeholders else 0)
