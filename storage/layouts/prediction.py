"""What a layout is given, and what it returns, to predict the size of shards that are not written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.schema.columns.shard import ATTENTION_COLUMNS, Column
from alignkd.storage.schema.commit_record import ArrayLayout


@dataclass(frozen=True, kw_only=True)
class ShardRows:
    """The rows that the records of one shard will have.

    Attributes:
        groups: rows of each record in each group of columns, int64 [records].
        has_image: whether a record shows an image, bool [records].
        widths: columns of each record's attention, for columns of variable width, int64 [records].
        more_widths: the same of further targets, by the field of `records` that holds them.
    """

    groups: Mapping[str, NDArray[np.int64]]
    has_image: NDArray[np.bool_]
    widths: NDArray[np.int64]
    more_widths: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.has_image)

    def widths_of(self, column: Column) -> NDArray[np.int64]:
        """Length of the last axis of a column of variable width, int64 [records]."""
        return self.widths if column.width_field == ATTENTION_COLUMNS else self.more_widths[column.width_field]

    def total(self, group: str) -> int:
        """Rows of all records in a group."""
        return int(self.groups[group].sum())


@dataclass(frozen=True, kw_only=True)
class PredictedShard:
    """The files that a layout will write for one shard.

    Attributes:
        columns: column -> bytes of its rows, with headers, checksums and padding.
        overhead: bytes of what belongs to no column: indexes, descriptions, first and last members.
        files: path relative to the shard's folder -> bytes, as the commit record will list them.
        arrays: as in the commit record.
    """

    columns: Mapping[str, int]
    overhead: int
    files: Mapping[str, int]
    arrays: Mapping[str, ArrayLayout] = field(default_factory=dict)


def row_bytes(column: Column, rows: ShardRows) -> int | NDArray[np.int64]:
    """Bytes of one row of a column; of each record, int64 [records], where the width varies."""
    if not column.variable_width:
        return column.row_bytes
    values: NDArray[Any] = rows.widths_of(column) * int(np.prod(column.row_shape[:-1]))
    return values * column.dtype.itemsize
