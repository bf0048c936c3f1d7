"""A Parquet file as entries: one per row."""

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from alignkd.disk.file_version import FileVersion
from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.formats.hashing import HashedAsAWhole
from alignkd.vlm.data.formats.parquet.columns import is_read, may_hold_conversation
from alignkd.vlm.data.formats.parquet.reading import RowGroup, batch_rows, read_layout
from alignkd.vlm.errors import InputError, one_line

EXPECTED = "expected a conversation ('conversations', 'messages', 'texts'), or 'question' and 'answer'"


class ParquetEntries(HashedAsAWhole):
    """See `EntryFile`. Columns that belong to no conversation are not read. A null is a key that the row lacks.

    Raises:
        InputError: damaged or truncated; no column with a conversation, names the columns.
    """

    is_sequential: Final = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = version = FileVersion.of(path)
        layout = read_layout(path)
        columns = tuple(name for name in layout.columns if is_read(name))
        binary = {name.partition(".")[0] for name in layout.binary}
        if binary.isdisjoint(columns):  # pictures under any other name make a sample unusable, so they must be read
            columns = tuple(name for name in layout.columns if name in columns or name in binary)
        if not may_hold_conversation(columns):
            raise InputError(f"{path}: no column with a conversation among {_listed(layout.columns)}; {EXPECTED}")
        self._other_columns = tuple(name for name in layout.columns if name not in columns)
        self.holds_images = not binary.isdisjoint(columns)
        self._group_rows, self._ends = layout.group_rows, list(accumulate(layout.group_rows))
        self._groups = [
            RowGroup(path, version, number, columns, batch_rows(num_rows, num_bytes))
            for number, (num_rows, num_bytes) in enumerate(zip(layout.group_rows, layout.group_bytes, strict=True))
        ]

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The row groups."""
        return self._group_rows

    @property
    def not_read(self) -> Mapping[str, int]:
        """The columns that belong to no conversation."""
        return dict.fromkeys(self._other_columns, len(self))

    def where(self, number: int) -> str:
        """The row of an entry and its row group."""
        group, row = self._place(number)
        return f"row {number} (row {row} of row group {group})"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> Any:
        group, row = self._place(number)
        try:
            return _without_nulls(self._groups[group].row(row))
        except InputError:
            raise
        except (ValueError, OverflowError) as error:
            return UnusableEntry("", f"row {number} of {self.path.name} cannot be read ({one_line(error)[:100]})")

    def _place(self, number: int) -> tuple[int, int]:
        number = range(len(self))[number]
        group = bisect_right(self._ends, number)
        return group, number - self._ends[group] + self._group_rows[group]


def _without_nulls(value: Any) -> Any:
    """All rows of a table have all columns, and all structs all fields; null stands for those that a row lacks."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _listed(columns: tuple[str, ...]) -> str:
    shown = ", ".join(map(repr, columns[:12]))
    return f"{shown}, ..." if len(columns) > 12 else shown or "no columns"
