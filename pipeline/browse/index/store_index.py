"""The index of a store, and the questions that it answers: a page of the list, histograms, groups, neighbours.

    index = open_index(StoreReader("runs/store", allow_incomplete=True))
    page = index.page(Filter(text="traffic light", ranges={"perplexity": (20, None)}), sort="perplexity")
    index.close()

Numbers are in memory, so that a question takes milliseconds; the file keeps them for the next time, and answers the
search in conversations. Every question is answered from what is indexed at that moment.
"""

import sqlite3
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from alignkd.pipeline.browse.index.builder import Builder, IndexState, Progress
from alignkd.pipeline.browse.index.columns import Column, columns_of
from alignkd.pipeline.browse.index.database import DamagedIndexError, IndexFile
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.histogram import Histogram, histogram_of
from alignkd.pipeline.browse.index.place import index_folder
from alignkd.pipeline.browse.index.table import Mask, Rows, Table
from alignkd.pipeline.browse.index.words import Phrase, phrases_of
from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.commit_record import committed_shards

EVERYTHING = Filter()
MAX_ROWS = 1000
KEPT_SEARCHES = 15
Row = dict[str, str | int | float | None]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some rows of the filtered and sorted list.

    Attributes:
        rows: every column of `StoreIndex.columns` by its name; None without a value.
        matching: samples that pass the filter.
        indexed, total: samples that are in the index so far, and all, unusable ones included.
    """

    rows: tuple[Row, ...]
    matching: int
    indexed: int
    total: int

    def as_json(self) -> dict[str, Any]:
        """The page as values of JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples of one data set, or unusable ones of one reason.

    Attributes:
        name: name of the data set, or the reason without what belongs to one sample (`general_reason`).
        count: samples of the group.
        matching: those of them that pass the filter without its choice of groups.
    """

    name: str
    count: int
    matching: int

    def as_json(self) -> dict[str, Any]:
        """The group as values of JSON."""
        return asdict(self)


def nothing(state: IndexState) -> None:
    """No progress is shown."""


def open_index(reader: StoreReader, *, progress: Progress = nothing, fts: bool | None = None) -> "StoreIndex":
    """Open the index of a store, and continue it in a background thread.

    The index lies in `STORE/.browse`; for a remote store, or one that cannot be written to, below ALIGNKD_CACHE. A
    store that is being written can be indexed: `reader` decides which shards are in the index.

    Args:
        progress: called by the thread with the new state whenever something was added.
        fts: whether the search uses FTS5 of SQLite; None: if it is there.

    Raises:
        StoreError: the index cannot be written anywhere.
    """
    index = StoreIndex(reader, progress=progress, fts=fts)
    index.builder.start()
    return index


class StoreIndex:
    """See `open_index`. Threads may share it; close it at the end, or use it as a context manager."""

    def __init__(self, reader: StoreReader, *, progress: Progress = nothing, fts: bool | None = None) -> None:
        self.reader, self.table = reader, Table(reader)
        self.builder = Builder(reader, self.table, index_folder(reader.files), progress, fts=fts)
        self._columns = {column.name: column for column in columns_of(reader.manifest)}
        self._fts = fts
        self._file: IndexFile | None = None
        self._file_lock = threading.Lock()
        # query -> version of the table, and row numbers
        self._searches: dict[str, tuple[int, Rows]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background thread and close the file."""
        self.builder.stop()
        with self._file_lock:
            self._close_file()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until the index is complete or its thread has ended for another reason; False after `seconds`."""
        return self.builder.wait(seconds)

    def state(self) -> IndexState:
        """How far the index is."""
        return self.builder.state()

    def is_current(self) -> bool:
        """Whether the store has no other shards than the reader; else open both again."""
        return committed_shards(self.reader.files) == list(map(int, self.reader.commits.shards))

    def columns(self) -> tuple[Column, ...]:
        """Every column, with the range of its values so far."""
        found = []
        for column in self._columns.values():
            if column.kind != "text" and column.available:
                low, high = self._range(column.name)
                column = replace(column, minimum=low, maximum=high)
            found.append(column)
        return tuple(found)

    def page(
        self,
        filter: Filter = EVERYTHING,
        *,
        sort: str = "position",
        descending: bool = False,
        offset: int = 0,
        limit: int = 50,
    ) -> Page:
        """Rows `offset : offset + limit` of the list; at most 1000 rows.

        Samples without a value of the column come last, equal values in the order of the store, unusable samples last.

        Raises:
            StoreError: an unknown column in `filter` or `sort`.
        """
        self._search(filter)
        with self.table.lock:
            rows = self._sorted(filter, sort, descending)
            shown = rows[max(0, offset) : max(0, offset) + min(max(0, limit), MAX_ROWS)]
            return Page(
                rows=tuple(self._row(int(row)) for row in shown),
                matching=len(rows),
                indexed=int(np.count_nonzero(self.table.is_indexed)),
                total=self.table.num_rows,
            )

    def rows(self, positions: Sequence[int]) -> list[Row]:
        """The rows of some records by their positions.

        Raises:
            IndexError: there is no such position.
        """
        if wrong := [position for position in positions if not 0 <= position < self.table.num_records]:
            raise IndexError(f"position {wrong[0]} of a store with {self.table.num_records} records")
        with self.table.lock:
            return [self._row(position) for position in positions]

    def positions(self, filter: Filter = EVERYTHING) -> Rows:
        """Positions of the records that pass a filter, ascending, int64.

        Raises:
            StoreError: an unknown column.
        """
        self._search(filter)
        with self.table.lock:
            return np.flatnonzero(self._kept(filter)[: self.table.num_records])

    def neighbours(
        self, filter: Filter = EVERYTHING, *, sort: str = "position", descending: bool = False, position: int
    ) -> tuple[int | None, int | None]:
        """Positions of the records before and after a record in the list; unusable samples are passed over.

        A record that does not pass the filter has the neighbours of the place where it would be.

        Raises:
            StoreError: an unknown column.
        """
        self._search(filter)
        with self.table.lock:
            order, kept = self._order(sort, descending), self._kept(filter).copy()
            kept[self.table.num_records :] = False
            place = self._inverse(sort, descending)[position] if 0 <= position < self.table.num_records else None
            if place is None:
                return None, None
            passing = np.flatnonzero(kept[order])
            at = int(np.searchsorted(passing, place))
            after = at + (at < len(passing) and passing[at] == place)
            previous = int(order[passing[at - 1]]) if at > 0 else None
            return previous, int(order[passing[after]]) if after < len(passing) else None

    def histogram(self, filter: Filter, column: str, bins: int = 40) -> Histogram:
        """Counts of all samples, and of those that pass the filter without its range of this column.

        Raises:
            StoreError: an unknown column, one of texts, or one that the store does not give.
        """
        found = self._numeric(column)
        self._search(filter)
        with self.table.lock:
            kept = self._kept(filter.without(column))
            indexed = self.table.is_indexed
            return histogram_of(
                column,
                self.table.column(column)[indexed],
                kept[indexed],
                bins,
                whole_numbers=found.kind == "integer",
                logarithmic=found.logarithmic,
            )

    def sources(self, filter: Filter = EVERYTHING) -> tuple[Group, ...]:
        """The data sets in their order.

        Raises:
            StoreError: an unknown column in the filter.
        """
        self._search(filter)
        with self.table.lock:
            kept, numbers = self._kept(filter.without("source")), self.table.source_numbers
            number = len(self.table.sources)
            counts = np.bincount(numbers[self.table.is_indexed], minlength=number)
            matching = np.bincount(numbers[kept], minlength=number)
        return tuple(
            Group(name=name, count=int(counts[at]), matching=int(matching[at]))
            for at, name in enumerate(self.table.sources)
        )

    def reasons(self, filter: Filter = EVERYTHING) -> tuple[Group, ...]:
        """Groups of reasons of the unusable samples, the most frequent first.

        Raises:
            StoreError: an unknown column in the filter.
        """
        self._search(filter)
        with self.table.lock:
            kept = self._kept(filter.without("reason"))[self.table.num_records :].tolist()
        groups = self.table.reason_groups
        counts = Counter(groups)
        matching = Counter(group for group, is_kept in zip(groups, kept, strict=True) if is_kept)
        return tuple(Group(name=name, count=count, matching=matching[name]) for name, count in counts.most_common())

    def _sorted(self, filter: Filter, sort: str, descending: bool) -> Rows:
        order = self._order(sort, descending)
        return order[self._kept(filter)[order]]

    def _order(self, sort: str, descending: bool) -> Rows:
        column = self._known(sort)
        if not column.available:
            return np.arange(self.table.num_rows)
        return self.table.order(sort, is_text=column.kind == "text", descending=descending)

    def _inverse(self, sort: str, descending: bool) -> Rows:
        def invert() -> Rows:
            order = self._order(sort, descending)
            inverse = np.empty_like(order)
            inverse[order] = np.arange(len(order))
            return inverse

        return self.table.cached(f"inverse {sort} {descending}", invert)

    def _kept(self, filter: Filter) -> Mask:
        """Which rows pass a filter."""
        table = self.table
        kept = table.is_indexed.copy()
        is_record = np.arange(table.num_rows) < table.num_records
        if filter.unusable is not None:
            kept &= is_record != filter.unusable
        if filter.sources:
            wanted = [number for number, name in enumerate(table.sources) if name in filter.sources]
            kept &= np.isin(table.source_numbers, wanted)
        if filter.reasons:
            groups = [group in filter.reasons for group in table.reason_groups]
            kept &= np.concatenate([np.zeros(table.num_records, np.bool_), np.array(groups, np.bool_)])
        if filter.id:
            kept &= table.rows_with_id(filter.id)
        for name, (low, high) in filter.ranges.items():
            kept &= self._within(name, low, high)
        return kept & self._found(filter.text) if filter.text.strip() else kept

    def _within(self, name: str, low: float | None, high: float | None) -> Mask:
        if not self._known(name).available:
            return np.zeros(self.table.num_rows, np.bool_)
        self._numeric(name)
        values = self.table.column(name)
        with np.errstate(invalid="ignore"):
            kept = ~np.isnan(values)
            if low is not None:
                kept &= values >= low
            if high is not None:
                kept &= values <= high
        return kept

    def _found(self, text: str) -> Mask:
        """Rows whose conversation has the words of a query."""

        def find() -> Mask:
            found = np.zeros(self.table.num_rows, np.bool_)
            numbers = self._numbers(text)
            bases = np.array(sorted(self.builder.place_of), np.int64)
            if not len(bases) or not len(numbers):
                return found
            places = np.array([self.builder.place_of[int(base)] for base in bases], np.int64)
            starts = np.array(self.table.starts, np.int64)
            of = np.searchsorted(bases, numbers, side="right") - 1
            offset = numbers - bases[of]
            # row numbers of dropped shards, and of shards that this reader does not know
            sizes = np.diff(starts)[places]
            inside = (of >= 0) & (offset < sizes[of])
            found[starts[places[of[inside]]] + offset[inside]] = True
            return found

        return self.table.cached(f"text {text}", find)

    def _search(self, filter: Filter) -> None:
        """Search before the table is locked: a search may wait until another thread has written to the file."""
        if filter.text.strip():
            self._numbers(filter.text)

    def _numbers(self, text: str) -> Rows:
        """Row numbers of the file for a query; the last results are kept until something was added."""
        version, kept = self.table.version, self._searches.get(text)
        if kept is not None and kept[0] == version:
            return kept[1]
        phrases = phrases_of(text)
        numbers = np.zeros(0, np.int64) if phrases is None else self._searched(phrases)
        last = list(self._searches.items())[-KEPT_SEARCHES:]
        self._searches = {**dict(last), text: (version, numbers)}
        return numbers

    def _searched(self, phrases: list[Phrase]) -> Rows:
        """Row numbers of the file; none while the file is made anew."""
        with self._file_lock:
            try:
                return self._opened_file().find(phrases)
            except FileNotFoundError:
                return np.zeros(0, np.int64)
            except DamagedIndexError:
                self._close_file()
                self.builder.start(damaged=True)
                return np.zeros(0, np.int64)
            except sqlite3.Error as error:
                raise StoreError(f"index {self.builder.path}: {error}; try again") from None

    def _opened_file(self) -> IndexFile:
        """The file whose row numbers the table knows."""
        if self._file is not None and not self._file.is_in_place():
            self._close_file()
        if self._file is None:
            self._file = IndexFile(self.builder.path, self.builder.owner, create=False, fts=self._fts)
        if self._file.id != self.builder.file_id:
            self._close_file()
            self.builder.start()
            raise FileNotFoundError(self.builder.path)
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            with suppress(sqlite3.Error):
                self._file.close()
        self._file = None

    def _row(self, row: int) -> Row:
        table, is_record = self.table, row < self.table.num_records
        known = bool(table.is_indexed[row])
        texts: dict[str, str | None] = {
            "id": table.id_of(row) if known else None,
            "key": table.keys[row].tobytes().hex() if is_record and known else None,
            "source": table.sources[int(table.source_numbers[row])] if known else None,
            "reason": None if is_record else table.unusable[row - table.num_records].reason,
        }
        found: Row = {}
        for name, column in self._columns.items():
            if column.kind == "text":
                found[name] = texts[name]
            else:
                value = float(table.column(name)[row]) if column.available else np.nan
                found[name] = None if np.isnan(value) else int(value) if column.kind == "integer" else value
        if is_record:
            found["position"] = row
        return found

    def _range(self, name: str) -> tuple[float | None, float | None]:
        def find() -> tuple[float | None, float | None]:
            values = self.table.column(name)
            there = values[~np.isnan(values)]
            return (float(there.min()), float(there.max())) if len(there) else (None, None)

        return self.table.cached(f"range {name}", find)

    def _known(self, name: str) -> Column:
        if name not in self._columns:
            raise StoreError(f"column {name!r:.60} does not exist; choose one of {', '.join(self._columns)}")
        return self._columns[name]

    def _numeric(self, name: str) -> Column:
        column = self._known(name)
        if column.kind == "text":
            numbers = ", ".join(one.name for one in self._columns.values() if one.kind != "text")
            raise StoreError(f"column {name} holds texts, which have no range; choose one of {numbers}")
        if not column.available:
            raise StoreError(f"column {name}: {column.note}; choose another column")
        return column
