"""The tables of one shard: which rows of each group belong to which record."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.schema.columns.shard import IMAGE_GROUPS, NO_ROW, OFFSETS, RECORDS, Column

# fields of `records` that every record has
_NEVER_ABSENT = ("dataset_index", "num_images", "length")

# Ranges: group -> first row and row after the last. Bounds: the same as two lists by the group's number, the group
# "record" last.
Ranges = dict[str, tuple[int, int]]
Bounds = tuple[list[int], list[int]]


@dataclass(frozen=True, kw_only=True)
class ShardTables:
    """The two tables of a shard.

    Attributes:
        groups: names of the columns of `offsets`.
        fields: names of the columns of `records`.
        offsets: first row of each record in each group, and last the number of rows, int64 [records + 1, groups].
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
        """Bytes of both tables."""
        return self.offsets.nbytes + self.records.nbytes

    def field(self, name: str) -> NDArray[np.int64]:
        """One column of `records`, int64 [records]."""
        return self.records[:, self.fields.index(name)]

    def ends(self, group: str) -> NDArray[np.int64]:
        """First row of each record in one group, and last the number of rows, int64 [records + 1]."""
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
        """The same as `bounds`, by the group's name."""
        starts, stops = self.bounds(record, numbers)
        return dict(zip((*self.groups, "record"), zip(starts, stops, strict=True), strict=True))

    def bounds(self, record: int, numbers: dict[str, int]) -> Bounds:
        """First and last rows of a record in each group; image rows are those of the record that stores the image."""
        starts, stops = self.offsets[record : record + 2].tolist()
        source = numbers["image_record"]
        if source not in (record, NO_ROW):
            for group in self._image_groups:
                starts[group], stops[group] = self.offsets[source : source + 2, group].tolist()
        starts.append(record)
        stops.append(record + 1)
        return starts, stops

    @cached_property
    def _image_groups(self) -> list[int]:
        return [number for number, group in enumerate(self.groups) if group in IMAGE_GROUPS]

    def problem(self) -> str | None:
        """Describe the first number that no writer writes. None means that no row outside the shard is addressed."""
        falling = np.argwhere(np.diff(self.offsets, axis=0) < 0)
        if falling.size or self.offsets[0].any():
            row = int(falling[0, 0]) if falling.size else 0
            return f"array {OFFSETS}: does not rise from 0, first at record {row}"
        for name in self.fields:
            if len(self) and int(self.field(name).min()) < (0 if name in _NEVER_ABSENT else NO_ROW):
                return f"array {RECORDS}: {name} is {int(self.field(name).min())}"
        return self._image_problem()

    def _image_problem(self) -> str | None:
        """Check that each record's image is stored with itself or with an earlier record, which names itself."""
        source = self.field("image_record")
        place = np.arange(len(self))
        brought = source[np.clip(source, 0, place)]
        wrong = np.flatnonzero((source < NO_ROW) | (source > place) | ((source >= 0) & (brought != source)))
        if wrong.size:
            return f"array {RECORDS}: image_record of record {wrong[0]} is {source[wrong[0]]}"
        if "num_images" not in self.fields:  # schema 2
            return None
        shown, stored = self.field("num_images"), np.diff(self.ends("shown"))
        wrong = np.flatnonzero((shown != stored) | ((shown > 0) != (source >= 0)))
        if wrong.size:
            return f"array {RECORDS}: num_images of record {wrong[0]} is {shown[wrong[0]]}, it has {stored[wrong[0]]}"
        return None


def tables_from(
    columns: Sequence[Column], offsets: NDArray[np.int64], records: NDArray[np.int64], where: str
) -> ShardTables:
    """Tables of a shard, checked.

    Args:
        where: the file and the shard, for messages.

    Raises:
        CorruptStoreError: a number that no writer writes.
    """
    labels = {column.name: column.labels for column in columns}
    tables = ShardTables(groups=labels[OFFSETS], fields=labels[RECORDS], offsets=offsets, records=records)
    if problem := tables.problem():
        raise CorruptStoreError(f"{where}, {problem}; restore the shard from a copy, or dump it again")
    return tables
