"""The members of one tar shard (WebDataset layout), as pure functions of what they hold.

    __store__/manifest.json                 the manifest, without what may differ between writers
    000000017.json                          key, id, index, image_record, conversations, image, image_sha256
    000000017.input_ids.npy                 one array per column that the record has; .npy version 1.0
    000000017.attention.npy
    000000017.vision_embeddings.npy         arrays of the image, last and only in the first record that shows the image
    000000017.jpg                           bytes of the image file, if the store embeds them; several images of one
                                            record are one .bin (`record/images.pack_files`)
    __end__/counts.json                     number of records, members and rows: a tar cut between members lacks it

Members of a record are consecutive. `image_record` is the name (`000000017`) of the record that holds the image's
arrays and bytes, null without an image. Readers that follow the WebDataset convention skip names that start with
`__x__/`. Headers are ustar with fixed time, owner and mode; npy headers are 128 bytes long. So array data starts at a
multiple of 64, and the same records give the same bytes.
"""

import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.schema.columns.shard import IMAGE_BYTES, IMAGE_GROUPS, KEYS, OFFSETS, RECORDS, Column
from alignkd.storage.schema.manifest import OPTIONAL, VOLATILE, Manifest
from alignkd.storage.schema.sealed_json import canonical

Buffer = bytes | NDArray[Any]
Offset = TypeVar("Offset", int, NDArray[np.int64])

BLOCK = 512
NPY_HEADER = 128
NPY_MAGIC = b"\x93NUMPY\x01\x00"
MANIFEST_MEMBER = "__store__/manifest.json"
COUNTS_MEMBER = "__end__/counts.json"
END = bytes(2 * BLOCK)
# fields of a ustar header; tarfile splits a longer name in two
_NAME_BYTES = 100
_SIZE_FIELD, _CHECKSUM_FIELD = slice(124, 136), slice(148, 156)
JSON = "json"
NPY = ".npy"
# stored in the JSON member and in the index, not as arrays
NOT_ARRAYS = (OFFSETS, RECORDS, KEYS, "id", "text")

_MAGIC_NUMBERS = (
    ("jpg", re.compile(rb"\xff\xd8\xff")),
    ("png", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("gif", re.compile(rb"GIF8[79]a")),
    ("webp", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("tif", re.compile(rb"II\*\x00|MM\x00\*")),
    ("bmp", re.compile(rb"BM")),
)
IMAGE_SUFFIXES = (*(suffix for suffix, _ in _MAGIC_NUMBERS), "bin")


def aligned(offset: Offset) -> Offset:
    """The next multiple of a tar block; of one offset or of an array of them."""
    return -(-offset // BLOCK) * BLOCK


def member_header(name: str, size: int) -> bytes:
    """The 512 bytes before a member's content.

    Raises:
        StoreError: ustar cannot hold the size or the name.
    """
    encoded = name.encode("ascii", "replace")
    if len(encoded) > _NAME_BYTES or not name.isascii() or not 0 <= size < 1 << 33:
        return _tarfile_header(name, size)
    # the rest is the same for every member; tarfile takes ten times as long to make a whole header
    header = bytearray(_tarfile_header("", 0))
    header[: len(encoded)] = encoded
    header[_SIZE_FIELD] = b"%011o\0" % size
    header[_CHECKSUM_FIELD] = b" " * 8
    header[_CHECKSUM_FIELD] = b"%06o\0 " % sum(header)
    return bytes(header)


@lru_cache(1)
def _tarfile_header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    try:
        return member.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")
    except ValueError as error:
        raise StoreError(f"member {name} of {size} bytes: {error}; the zarr backend has no such limit") from None


def npy_header(dtype: np.dtype[Any], shape: Sequence[int]) -> bytes:
    """Header of an .npy file, version 1.0, always with the same spaces and padding."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    size = NPY_HEADER - len(NPY_MAGIC) - 2
    if len(text) >= size:
        raise StoreError(
            f"an array of shape {tuple(shape)} has a description that is too long for the tar layout; the zarr backend "
            "has no such limit"
        )
    return NPY_MAGIC + size.to_bytes(2, "little") + text.ljust(size - 1).encode() + b"\n"


def shown_shape(column: Column, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the .npy header of a record's rows."""
    return shape[1:] if column.squeezed and shape[0] == 1 else shape


@dataclass(frozen=True)
class Member:
    """One place in the order of a record's members.

    Attributes:
        column: the column whose rows are the member's data; None for the JSON member.
        of_image: only the record that brings an image has this member.
    """

    column: Column | None = None
    of_image: bool = False

    @property
    def name(self) -> str:
        """For messages."""
        return JSON if self.column is None else self.column.name

    @property
    def header_bytes(self) -> int:
        """Length of the .npy header."""
        return 0 if self.column is None or self.column.name == IMAGE_BYTES else NPY_HEADER

    def file_name(self, index: int, data: Buffer) -> str:
        """Name in the tar; `index` is the record's position in the data set, `data` the member's data."""
        if self.column is not None and self.column.name == IMAGE_BYTES:
            return f"{record_name(index)}.{image_suffix(bytes(data[:16]))}"
        return f"{record_name(index)}.{self.name if self.column is None else self.name + NPY}"

    def frame(self, index: int, data: Buffer, shape: tuple[int, ...]) -> bytes:
        """All bytes before the member's data: the tar header and the .npy header.

        Args:
            shape: of the record's rows of the column.
        """
        header = b""
        if self.column is not None and self.header_bytes:
            header = npy_header(self.column.dtype, shown_shape(self.column, shape))
        return member_header(self.file_name(index, data), len(header) + len(data)) + header


def record_members(columns: Sequence[Column]) -> tuple[Member, ...]:
    """A record's members in the order of the tar: its JSON, its arrays, and what belongs to its image.

    This is the only statement of that order. Writer, reader, checks, rebuilding and prediction iterate over it.
    """
    arrays = [column for column in columns if column.name not in NOT_ARRAYS]
    own = [Member(column) for column in arrays if column.group not in IMAGE_GROUPS]
    image = [Member(column, of_image=True) for group in IMAGE_GROUPS for column in arrays if column.group == group]
    return (Member(), *own, *image)


def record_name(index: int) -> str:
    """Start of the names of a record's members; `index` is the record's position in the data set."""
    return f"{index:09d}"


def image_suffix(beginning: bytes) -> str:
    """File name suffix of an image file with these first bytes; `bin` for an unknown format."""
    return next((suffix for suffix, magic in _MAGIC_NUMBERS if magic.match(beginning)), "bin")


def json_head(*, key: str, id: str, index: int, image_record: int | None) -> bytes:
    """Start of a record's JSON member: the fields that are in the shard's tables, up to and including the comma.

    `image_record` is the data-set index of the record that stores the image.
    """
    shown = None if image_record is None else record_name(image_record)
    head = {"key": key, "id": id, "index": index, "image_record": shown}
    text = json.dumps(head, ensure_ascii=False, separators=(",", ":"))
    # some data sets contain lone surrogates; the store keeps them
    return text[:-1].encode("utf-8", "surrogatepass") + b","


def json_member(head: bytes, text: bytes) -> bytes:
    """The JSON member: one object of the fields in the head and those of the column `text`."""
    return head + text[1:]


def text_rows(member: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """The `length` bytes of the column `text`, restored from the JSON member's bytes."""
    rows = np.empty(length, np.uint8)
    if length:
        rows[0] = ord("{")
        rows[1:] = member[len(member) - length + 1 :]
    return rows


def opening(manifest: Manifest) -> bytes:
    """All bytes before the first record."""
    return _whole_member(MANIFEST_MEMBER, canonical(manifest.model_dump(exclude={*VOLATILE, *OPTIONAL})))


def closing(num_records: int, num_members: int, rows: Mapping[str, int]) -> bytes:
    """All bytes after the last record; `rows`: number of rows in each group."""
    counts = {"num_records": num_records, "num_members": num_members, "rows": dict(rows)}
    return _whole_member(COUNTS_MEMBER, canonical(counts)) + END


def _whole_member(name: str, content: bytes) -> bytes:
    return member_header(name, len(content)) + content + bytes(aligned(len(content)) - len(content))
