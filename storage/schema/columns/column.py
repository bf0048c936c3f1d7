"""One stored array of a shard, and the arrays that stores of every schema have."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import part_column
from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED

OFFSETS = "offsets"
RECORDS = "records"
KEYS = "keys"
IMAGE_BYTES = "image_bytes"
ATTENTION_COLUMNS = "attention_columns"
# in `records`: the record has no such row, or no such target
NO_ROW = -1

# An inner chunk is the unit of reading and of checksumming. Large chunks: more bytes are read that a record does not
# need. Small chunks: each costs about 2 us of Python. Measured with 32 heads and 144 vision tokens: 32 to 256 KiB are
# within 20 % of each other. Small chunks are better for fields of few bytes per record.
CHUNK_BYTES = 1 << 17
SMALL_CHUNK_BYTES = 1 << 13
SMALL_ROW_BYTES = 256
# attention of variable width is chunked along the columns too
COLUMN_BLOCK = 64


@dataclass(frozen=True)
class Column:
    """One stored array: rows of `row_shape`.

    Attributes:
        group: name of the group; its arrays have the same number of rows.
        width_field: where the last dimension differs between records, the field of `records` that has it.
        labels: names of the entries of a row, for the shard's tables.
        unit: rows that are read together; a chunk holds whole units.
        squeezed: a single row is shown without its axis to readers of tars.
        needs_image: records without images do not have it.
        chunk_bytes: largest size of an inner chunk; 0: by the size of a row.
    """

    name: str
    group: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...] = ()
    width_field: str = ""
    labels: tuple[str, ...] = ()
    unit: int = 1
    squeezed: bool = False
    needs_image: bool = False
    chunk_bytes: int = 0

    @property
    def variable_width(self) -> bool:
        """Whether the last dimension differs between records."""
        return bool(self.width_field)

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.row_shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of an inner chunk, rows first; the last dimension is a block of columns if the width varies."""
        one_unit = self.unit > 1 or self.group in _ONE_ROW_GROUPS
        target = SMALL_CHUNK_BYTES if one_unit or self.row_bytes <= SMALL_ROW_BYTES else CHUNK_BYTES
        units = max(1, (self.chunk_bytes or target) // max(1, self.unit * self.row_bytes))
        return (self.unit << (units.bit_length() - 1), *self.row_shape)

    @property
    def fill_value(self) -> int | float:
        """What an absent chunk shows to zarr readers: no datum, so that damage shows.

        Of varying width, absent chunks are beyond the width of the rows' attention.
        """
        if self.variable_width:
            return 0
        # of one unsigned byte every value may be a datum
        return {"f": np.nan, "i": -128 if self.dtype.itemsize == 1 else -1, "u": _ALL_ONES[self.dtype.itemsize]}[
            self.dtype.kind
        ]

    def shape_of(self, rows: int, numbers: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a record's rows; `numbers` is its row of `records`."""
        if not self.width_field:
            return (rows, *self.row_shape)
        return (rows, *self.row_shape[:-1], numbers[self.width_field])


# one row of them belongs to a record or to an image
_ONE_ROW_GROUPS = ("record", "top", "top_scale", "image", "shown")
_ALL_ONES = {1: 0, 2: (1 << 16) - 1, 4: (1 << 32) - 1, 8: (1 << 64) - 1}


def table_columns(groups: tuple[str, ...], fields: tuple[str, ...]) -> list[Column]:
    """The shard's tables, texts, ids and positions, which stores of every schema have."""
    i8, i4, u1 = np.dtype("<i8"), np.dtype("<i4"), np.dtype("u1")
    return [
        Column(OFFSETS, "record", i8, (len(groups),), labels=groups),
        Column(RECORDS, "record", i8, (len(fields),), labels=fields),
        Column(KEYS, "record", u1, (32,)),
        Column("text", "text", u1),
        Column("id", "id", u1),
        Column("input_ids", "token", i4),
        Column("labels", "token", i4),
        Column("vision_positions", "vision", i4),
        Column("tqv_query_positions", "query", i4),
        Column("supervised_positions", "supervised", i4),
    ]


def float_columns(
    field: str, group: str, codec: str, row_shape: tuple[int, ...], width_field: str = ""
) -> list[Column]:
    """The columns of a float target, one for each part of its codec."""
    if codec in (FROM_ALL, *NOT_STORED):
        return []
    # only the values have the axis that varies, not the scales
    return [
        Column(part_column(field, part), group, dtype, shape, "" if part else width_field)
        for part, (dtype, shape) in get_codec(codec).parts(row_shape).items()
    ]
