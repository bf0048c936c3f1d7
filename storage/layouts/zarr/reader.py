"""Reads a zarr shard: a record's rows of every column, directly from the sharding files."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.source import REPAIR, ByteFile, StoreFiles
from alignkd.storage.layouts.tables import Bounds, Ranges, ShardTables, tables_from
from alignkd.storage.layouts.zarr.chunk_file import CHECKSUMS, METADATA, data_file, index_bytes
from alignkd.storage.layouts.zarr.chunk_reader import ShardingFileReader
from alignkd.storage.schema.columns.shard import KEYS, OFFSETS, RECORDS, Column
from alignkd.storage.schema.commit_record import ArrayLayout, CommitRecord, FileEntry

# the group's description has 8 digits for each chunk
MAX_DESCRIPTION_BYTES = 64 << 20
# memory of the Python objects of one column: entries of the commit record, layout, reader
OBJECT_BYTES = 4 << 10


class ZarrSource:
    """See `alignkd.storage.layouts.protocol.ShardSource`; files are opened when first needed."""

    def __init__(
        self,
        files: StoreFiles,
        folder: str,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> None:
        self.files, self.folder, self.columns, self.commit = files, folder, columns, commit
        self._by_name = {column.name: column for column in columns}
        groups = (*self._by_name[OFFSETS].labels, "record")
        self.places = {column.name: (groups.index(column.group), column.width_field) for column in columns}
        self._committed = {entry.path: entry for entry in commit.files}
        self._layouts = self._checked_layouts()
        self._checksums = self._read_checksums()
        self._open: dict[str, ShardingFileReader] = {}
        # replaced as a whole, because other threads read it
        self._busy = _BusyColumns([], [])
        self._tables: ShardTables | None = None

    def tables(self) -> ShardTables:
        if self._tables is None:
            n = self.commit.num_records
            self._open_together([self._by_name[OFFSETS], self._by_name[RECORDS]])
            offsets, records = self.file(OFFSETS), self.file(RECORDS)
            if (found := (offsets.layout.shape[0], records.layout.shape[0])) != (n + 1, n):
                raise self._wrong(f"tables have {found[0]} and {found[1]} rows of {n} records")
            where = f"{self.files.label(self.folder)}: shard {self.commit.shard}"
            self._tables = tables_from(self.columns, offsets.read(0, n + 1), records.read(0, n), where)
        return self._tables

    def keys(self) -> NDArray[Any]:
        return self.file(KEYS).read(0, self.commit.num_records)

    def ids(self) -> NDArray[Any]:
        return self.file("id").read(0, self.tables().rows_of("id"))

    def texts(self) -> NDArray[Any]:
        return self.file("text").read(0, self.tables().rows_of("text"))

    def rows(self, record: int, numbers: dict[str, int], *, whole: bool = True) -> ReadRows:
        starts, stops = bounds = self.tables().bounds(record, numbers)
        if whole and not self.files.checks_sizes:
            self._announce(self.tables().ranges(record, numbers))
        rows, (held, others) = _RecordRows(self, bounds, numbers), self._busy
        for name, group, array in held:
            rows[name] = array[starts[group] : stops[group]].copy()
        for name, group, file in others if whole else ():
            if 0 <= (start := starts[group]) < (stop := stops[group]):
                rows[name] = file.read(start, stop)
        return rows.__getitem__

    def _announce(self, ranges: Ranges) -> None:
        """Let a remote store fetch all columns of a record at once."""
        not_read = {OFFSETS, RECORDS, *(name for name, _, _ in self._busy.held)}
        wanted = [c for c in self.columns if c.name not in not_read and _length(ranges, c) > 0]
        self._open_together(wanted)
        for column in wanted:
            self.file(column.name).will_need(*ranges[column.group])

    def _open_together(self, columns: Sequence[Column]) -> None:
        """Open files; a remote store fetches their indices at once."""
        new = [column for column in columns if column.name not in self._open and self._layouts[column.name].shape[0]]
        files = {column.name: self._open_data(column) for column in new}
        for name, file in files.items():
            size = index_bytes(self._layouts[name])
            file.will_need(max(0, file.size - size), size)
        for column in new:
            self._open[column.name] = self._open_file(column, files[column.name])

    def table_bytes(self) -> int:
        chunks = sum(len(data) for data in self._checksums.values())
        return self.tables().num_bytes + 2 * chunks + OBJECT_BYTES * len(self.columns)

    def hold(self, limit: int) -> int:
        tables, busy = self.tables(), _BusyColumns([], [])
        columns = [c for c in self.columns if c.name not in (OFFSETS, RECORDS) and not c.variable_width]
        for column in sorted(columns, key=lambda column: self.file(column.name).num_bytes):
            file, num_rows = self.file(column.name), tables.rows_of(column.group)
            group, _ = self.places[column.name]
            limit -= file.num_bytes
            if limit >= 0 and file.layout.shape[0] == num_rows:
                busy.held.append((column.name, group, file.read(0, num_rows)))
            else:
                busy.others.append((column.name, group, file))
        self._busy = busy
        return sum(array.nbytes for _, _, array in busy.held)

    def release(self) -> None:
        self._busy = _BusyColumns([], [])
        for file in list(self._open.values()):
            file.release()

    def check_descriptions(self) -> None:
        entries = [self._entry(f"{column.name}/{METADATA}") for column in self.columns]
        files = [self._open_entry(entry) for entry in entries]
        for entry, file in zip(entries, files, strict=True):
            file.will_need(0, entry.bytes)
        for entry, file in zip(entries, files, strict=True):
            self._read_description(entry, file)

    def damage(self, *, headers: bool = True) -> list[str]:
        problems = []
        for column in self.columns:
            try:
                problems += [str(error) for error in self.file(column.name).damaged_chunks()]
            except CorruptStoreError as error:
                problems.append(str(error))
        return problems

    def structure_problems(self) -> list[str]:
        problems, tables = [], self.tables()
        for column in self.columns:
            layout, where = self._layouts[column.name], f"shard {self.commit.shard}, array {column.name}"
            expected = tables.rows_of(column.group) + (column.name == OFFSETS)
            if layout.shape[0] != expected:
                problems.append(f"{where}: has {layout.shape[0]} rows, expected {expected} by the offsets")
            path = f"{column.name}/{METADATA}"
            if (found := self._description(path).get("shape")) != list(layout.shape):
                problems.append(f"{self._label(path)}: shape is {found}, committed {list(layout.shape)}")
        return problems

    def file(self, name: str) -> ShardingFileReader:
        """The open file of a column."""
        reader = self._open.get(name)
        if reader is None:
            reader = self._open[name] = self._open_file(self._by_name[name])
        return reader

    def _open_file(self, column: Column, file: ByteFile | None = None) -> ShardingFileReader:
        layout, name = self._layouts[column.name], column.name
        if file is None and layout.shape[0]:
            file = self._open_data(column)
        return ShardingFileReader(
            file,
            column.dtype,
            layout,
            expected=self._expected(name),
            reopen=self._opener(self._entry(data_file(column)), f", array {name}") if layout.shape[0] else None,
        )

    def _open_data(self, column: Column) -> ByteFile:
        return self._open_entry(self._entry(data_file(column)), f", array {column.name}")

    def _open_entry(self, entry: FileEntry, what: str = "") -> ByteFile:
        return self._opener(entry, what)()

    def _opener(self, entry: FileEntry, what: str) -> Callable[[], ByteFile]:
        """A function that opens a file; it does not refer to the source, to avoid a reference cycle."""
        path, what = f"{self.folder}/{entry.path}", f"shard {self.commit.shard}{what}"
        return partial(self.files.open, path, what, size=entry.bytes, sha256=entry.sha256)

    def _entry(self, path: str) -> FileEntry:
        entry = self._committed.get(path)
        if entry is None:
            raise self._wrong(f"{path} is not in the commit record")
        return entry

    def _expected(self, name: str) -> NDArray[np.uint32]:
        """crc32c of each chunk and of the index."""
        try:
            return np.frombuffer(bytes.fromhex(self._checksums[name]), ">u4")
        except (KeyError, ValueError):
            raise self._wrong(f"{METADATA} has no checksums of array {name}") from None

    def _checked_layouts(self) -> Mapping[str, ArrayLayout]:
        """Layouts of the commit record; they may differ from the manifest's in numbers of rows and variable widths."""
        layouts = self.commit.arrays
        for column in self.columns:
            layout = layouts.get(column.name)
            if layout is None:
                raise self._wrong(f"array {column.name} is not in the commit record")
            fixed = slice(1, -1 if column.variable_width else None)
            shapes = {layout.shape[fixed], layout.chunk[fixed]}
            if shapes != {column.row_shape[: -1 if column.variable_width else None]}:
                found = str(layout.shape[1:])[:80]
                raise self._wrong(f"array {column.name} has rows of {found}, expected {column.row_shape}")
            if len(layout.shape) != 1 + len(column.row_shape):
                raise self._wrong(f"array {column.name} has shape {layout.shape}")
        return layouts

    def _description(self, path: str) -> dict[str, Any]:
        """Read a `zarr.json` and verify that it is the committed one."""
        entry = self._entry(path)
        data = self._read_description(entry, self._open_entry(entry))
        try:
            document = json.loads(data)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._wrong(f"{path} is not a JSON object")
        return document

    def _read_description(self, entry: FileEntry, file: ByteFile) -> bytes:
        if not file.size == entry.bytes <= MAX_DESCRIPTION_BYTES:
            raise self._wrong(f"{entry.path} holds {file.size} bytes, committed {entry.bytes}")
        data = np.empty(entry.bytes, np.uint8)
        file.pread_into([data], 0)
        found = hashlib.sha256(data.tobytes()).hexdigest()
        if found != entry.sha256:
            label = self._label(entry.path)
            raise CorruptStoreError(f"{label}: sha256 is {found[:12]}, committed {entry.sha256[:12]}; {REPAIR}")
        return data.tobytes()

    def _read_checksums(self) -> dict[str, str]:
        """Array name -> crc32c of its chunks and of its index, in hex, from the attributes of the group."""
        attributes = self._description(METADATA).get("attributes")
        found = attributes.get(CHECKSUMS) if isinstance(attributes, dict) else None
        if not isinstance(found, dict) or not all(isinstance(digits, str) for digits in found.values()):
            raise self._wrong(f"{METADATA} has no checksums of the arrays")
        return found

    def _label(self, path: str) -> str:
        return self.files.label(f"{self.folder}/{path}")

    def _wrong(self, problem: str) -> CorruptStoreError:
        return CorruptStoreError(f"{self.files.label(self.folder)}: shard {self.commit.shard}: {problem}; {REPAIR}")


class _BusyColumns(NamedTuple):
    """The columns of a shard from which many records are read, each with the number of its group.

    Attributes:
        held: columns that are in memory as a whole.
        others: columns whose rows are read for each record.
    """

    held: list[tuple[str, int, NDArray[Any]]]
    others: list[tuple[str, int, ShardingFileReader]]


class _RecordRows(dict[str, NDArray[Any]]):
    """A record's rows by column; columns that are not in it are read on demand."""

    def __init__(self, source: ZarrSource, bounds: Bounds, numbers: Mapping[str, int]) -> None:
        self._source, self._numbers = source, numbers
        self._starts, self._stops = bounds

    def __missing__(self, name: str) -> NDArray[Any]:
        group, width_field = self._source.places[name]
        width = self._numbers[width_field] if width_field else None
        return self._source.file(name).read(self._starts[group], self._stops[group], width)


def _length(ranges: Ranges, column: Column) -> int:
    start, stop = ranges.get(column.group, (0, 0))
    return stop - start
