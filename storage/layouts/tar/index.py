"""The index of a tar shard (`NNNNNNNN.idx`): the shard's tables, and the place of every member's data.

Little-endian, each array at a multiple of 8 bytes:

    8s  "alignidx"          u4  version, 1              u4  members per record m
    u8  records n           u4  groups g                u4  fields f
    u8  bytes of ids        u8  bytes of the tar        u8  first record's offset = bytes of the opening
    u8  end of the records  u4  crc32c of the opening   u4  crc32c of the closing
    i8  offsets [n + 1, g]                  rows of each record in each group, as in the zarr layout
    i8  records [n, f]                      numbers of each record
    u1  keys [n, 32]
    u1  ids                                 UTF-8, separated by `offsets`
    i8  parts [n, 3]                        start of the record, start of its image's members, end of the record
    u4  part_checksums [n, 2]               crc32c of all bytes of both parts, headers and padding included
    (i8 offset, i8 size, u4 crc32c) [n, m]  data of each member, without headers; -1, 0, 0 if the record has no such
    u4  crc32c of all bytes before it

Members are in the order of `format.record_members`. Names of groups, fields and columns follow from the manifest, which
is in the tar.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.source import REPAIR

MAGIC = b"alignidx"
VERSION = 1
MAX_BYTES = 1 << 30
CRC_BYTES = 4
PLACE = np.dtype([("offset", "<i8"), ("size", "<i8"), ("crc32c", "<u4")])
_HEADER = struct.Struct("<8sIIQIIQQQQII")


@dataclass(frozen=True, kw_only=True)
class TarIndex:
    """See the module's description.

    Attributes:
        head_bytes: length of the opening.
        tail_start: offset of the closing.
    """

    offsets: NDArray[np.int64]
    records: NDArray[np.int64]
    keys: NDArray[np.uint8]
    ids: NDArray[np.uint8]
    parts: NDArray[np.int64]
    part_checksums: NDArray[np.uint32]
    places: NDArray[Any]
    tar_bytes: int
    head_bytes: int
    tail_start: int
    head_checksum: int
    tail_checksum: int

    def to_bytes(self) -> bytes:
        """Content of the index file."""
        n, m = self.places.shape
        header = _HEADER.pack(
            MAGIC,
            VERSION,
            m,
            n,
            self.offsets.shape[1],
            self.records.shape[1],
            len(self.ids),
            self.tar_bytes,
            self.head_bytes,
            self.tail_start,
            self.head_checksum,
            self.tail_checksum,
        )
        arrays = (self.offsets, self.records, self.keys, self.ids, self.parts, self.part_checksums, self.places)
        content = _padded(header) + b"".join(_padded(array.tobytes()) for array in arrays)
        return content + crc32c(content).to_bytes(CRC_BYTES, "little")


def parse_index(data: bytes, where: str) -> TarIndex:
    """The index in a file's bytes; `where` names the file. Arrays are read-only views of `data`.

    Raises:
        CorruptStoreError: damaged, of another version, or with sizes that do not fit each other.
    """
    if len(data) < _HEADER.size + CRC_BYTES or data[:8] != MAGIC:
        raise CorruptStoreError(f"{where}: {len(data)} bytes are not an index of a tar shard; {REPAIR}")
    found, actual = int.from_bytes(data[-CRC_BYTES:], "little"), crc32c(data[:-CRC_BYTES])
    if found != actual:
        raise CorruptStoreError(f"{where}: crc32c is {actual:08x}, stored {found:08x}; {REPAIR}")
    _, version, m, n, g, f, id_bytes, tar_bytes, head_bytes, tail_start, head, tail = _HEADER.unpack_from(data)
    if version != VERSION:
        raise CorruptStoreError(f"{where}: version is {version}, this alignkd reads {VERSION}; use a matching alignkd")
    arrays, at = [], _aligned(_HEADER.size)
    for dtype, shape in _arrays(n, g, f, id_bytes, m):
        size = _num_bytes(dtype, shape)
        if at + size > len(data) - CRC_BYTES:
            raise CorruptStoreError(f"{where}: {n} records with {m} members do not fit {len(data)} bytes; {REPAIR}")
        arrays.append(np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape))
        at += _aligned(size)
    if at != len(data) - CRC_BYTES:
        raise CorruptStoreError(f"{where}: {n} records with {m} members do not fill {len(data)} bytes; {REPAIR}")
    offsets, records, keys, ids, parts, part_checksums, places = arrays
    return TarIndex(
        offsets=offsets,
        records=records,
        keys=keys,
        ids=ids,
        parts=parts,
        part_checksums=part_checksums,
        places=places,
        tar_bytes=tar_bytes,
        head_bytes=head_bytes,
        tail_start=tail_start,
        head_checksum=head,
        tail_checksum=tail,
    )


class IndexBuilder:
    """Collects an index record by record."""

    def __init__(self, num_groups: int) -> None:
        self._offsets: list[Any] = [np.zeros(num_groups, np.int64)]
        self._records: list[Any] = []
        self._keys: list[bytes] = []
        self._ids: list[bytes] = []
        self._parts: list[tuple[int, int, int]] = []
        self._checksums: list[tuple[int, int]] = []
        self._places: list[list[tuple[int, int, int]]] = []

    def add(
        self,
        *,
        ends: NDArray[np.int64],
        numbers: NDArray[np.int64],
        key: bytes,
        id: bytes,
        parts: tuple[int, int, int],
        checksums: tuple[int, int],
        places: list[tuple[int, int, int]],
    ) -> None:
        """Add the next record: its rows of `offsets` and `records`, and the places of its bytes."""
        self._offsets.append(ends)
        self._records.append(numbers)
        self._keys.append(key)
        self._ids.append(id)
        self._parts.append(parts)
        self._checksums.append(checksums)
        self._places.append(places)

    @property
    def num_records(self) -> int:
        return len(self._records)

    @property
    def num_members(self) -> int:
        return sum(offset >= 0 for places in self._places for offset, _, _ in places)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Number of rows in each group so far."""
        ends: NDArray[np.int64] = self._offsets[-1]
        return ends

    def numbers(self, record: int) -> NDArray[np.int64]:
        """The row of `records` of an earlier record."""
        numbers: NDArray[np.int64] = self._records[record]
        return numbers

    def finish(self, num_fields: int, num_members: int, opening: bytes, tail_start: int, closing: bytes) -> TarIndex:
        """The index of the whole tar."""
        n = self.num_records
        return TarIndex(
            offsets=np.stack(self._offsets).astype("<i8"),
            records=np.array(self._records, "<i8").reshape(n, num_fields),
            keys=np.frombuffer(b"".join(self._keys), np.uint8).reshape(n, 32),
            ids=np.frombuffer(b"".join(self._ids), np.uint8),
            parts=np.array(self._parts, "<i8").reshape(n, 3),
            part_checksums=np.array(self._checksums, "<u4").reshape(n, 2),
            places=np.array(self._places, PLACE).reshape(n, num_members),
            tar_bytes=tail_start + len(closing),
            head_bytes=len(opening),
            tail_start=tail_start,
            head_checksum=crc32c(opening),
            tail_checksum=crc32c(closing),
        )


def index_bytes(records: int, groups: int, fields: int, id_bytes: int, members: int) -> int:
    """Length of an index file."""
    arrays = _arrays(records, groups, fields, id_bytes, members)
    return _aligned(_HEADER.size) + sum(_aligned(_num_bytes(*array)) for array in arrays) + CRC_BYTES


def _arrays(n: int, g: int, f: int, id_bytes: int, m: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """dtype and shape of each array of the file, in their order; letters as in the module's description."""
    i8, u4, u1 = np.dtype("<i8"), np.dtype("<u4"), np.dtype("u1")
    return [
        (i8, (n + 1, g)),
        (i8, (n, f)),
        (u1, (n, 32)),
        (u1, (id_bytes,)),
        (i8, (n, 3)),
        (u4, (n, 2)),
        (PLACE, (n, m)),
    ]


def _num_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return math.prod(shape) * dtype.itemsize  # not numpy: hostile sizes must not overflow


def _aligned(size: int) -> int:
    return -(-size // 8) * 8


def _padded(data: bytes) -> bytes:
    return data + bytes(_aligned(len(data)) - len(data))
