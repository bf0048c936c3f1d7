"""The tables of one shard: which rows of every group belong to which record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.schema.columns import OFFSETS, RECORDS, Column

# groups whose rows are brought by one record and shared by all with the same image
IMAGE_GROUPS = ("image", "image_bytes")
NONE = -1

# group -> first row and row after the last; and the same as two lists by the group's number, "record" after the others
Ranges = dict[str, tuple[int, int]]
Bounds = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class ShardTables:
    """Rows of records.

    Attributes:
        groups: names of the columns of `offsets`.
        fields: names of the columns of `records`.
        offsets: where each record's rows begin in each group, int64 [records + 1, groups].
        records: numbers of each record, int64 [records, fields].
    """

    groups: tuple[str, ...]
    fields: tuple[str, ...]
    offsets: NDArray[np.int64]
    records: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.records)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables."""
        return self.offsets.nbytes + self.records.nbytes

    def field(self, name: str) -> NDArray[np.int64]:
        """One column of `records`, int64 [records]."""
        return self.records[:, self.fields.index(name)]

    def ends(self, group: str) -> NDArray[np.int64]:
        """Where the rows of records begin and end in one group, int64 [records + 1]."""
        return self.offsets[:, self.groups.index(group)]

    def lengths(self) -> NDArray[np.int64]:
        """Rows of each record in each group, int64 [records, groups]."""
        return np.diff(self.offsets, axis=0)

    def rows_of(self, group: str) -> int:
        """Rows of a group in the whole shard."""
        return len(self) if group == "record" else int(self.offsets[-1, self.groups.index(group)])

    def numbers(self, record: int) -> dict[str, int]:
        """A record's row of `records` by name."""
        return dict(zip(self.fields, self.records[record].tolist(), strict=True))

    def ranges(self, record: int, numbers: dict[str, int]) -> Ranges:
        """`bounds` by group."""
        starts, stops = self.bounds(record, numbers)
        return dict(zip((*self.groups, "record"), zip(starts, stops, strict=True), strict=True))

    def bounds(self, record: int, numbers: dict[str, int]) -> Bounds:
        """A record's rows in each group; image rows are those of the record that brought the image."""
        starts, stops = self.offsets[record : record + 2].tolist()
        source = numbers["image_record"]
        if source not in (record, NONE):
            for group in map(self.groups.index, IMAGE_GROUPS):
                starts[group], stops[group] = self.offsets[source : source + 2, group].tolist()
        starts.append(record)
        stops.append(record + 1)
        return starts, stops

    def problem(self) -> str | None:
        """What no writer writes, in words; nothing outside the shard can be addressed where this is None."""
        falling = np.argwhere(np.diff(self.offsets, axis=0) < 0)
        if falling.size or self.offsets[0].any():
            row = int(falling[0, 0]) if falling.size else 0
            return f"array {OFFSETS}: not rising from 0, first at record {row}"
        for name in ("image_row", "attention_columns", "dataset_index"):
            if len(self) and int(self.field(name).min()) < (0 if name == "dataset_index" else NONE):
                return f"array {RECORDS}: {name} is {int(self.field(name).min())}"
        return self._image_problem()

    def _image_problem(self) -> str | None:
        """Every image is brought by a record that is not later, which names itself."""
        source = self.field("image_record")
        place = np.arange(len(self))
        brought = source[np.clip(source, 0, place)]
        wrong = np.flatnonzero((source < NONE) | (source > place) | ((source >= 0) & (brought != source)))
        if wrong.size:
            return f"array {RECORDS}: image_record of record {wrong[0]} is {source[wrong[0]]}"
        return None


def tables_from(
    columns: Sequence[Column], offsets: NDArray[np.int64], records: NDArray[np.int64], where: str
) -> ShardTables:
    """Tables of a shard, checked.

    Raises:
        CorruptStoreError: numbers that no writer writes.
    """
    labels = {column.name: column.labels for column in columns}
    tables = ShardTables(groups=labels[OFFSETS], fields=labels[RECORDS], offsets=offsets, records=records)
    if problem := tables.problem():
        raise CorruptStoreError(f"{where}, {problem}; restore the shard from a copy, or dump it again")
    return tables
