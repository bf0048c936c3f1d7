"""Reading a tar shard: a record is one range of bytes, checked as a whole and cut into arrays by the index."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.base import ReadRows
from alignkd.storage.errors import CorruptStoreError
from alignkd.storage.files.buffers import empty
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.files.source import REPAIR, ByteFile, Bytes, StoreFiles
from alignkd.storage.layouts.tables import ShardTables, tables_from
from alignkd.storage.layouts.tar.check import frame_problem, places_problem
from alignkd.storage.layouts.tar.format import closing, opening, record_members, text_rows
from alignkd.storage.layouts.tar.index import MAX_BYTES, TarIndex, parse_index
from alignkd.storage.schema.columns.shard import IMAGE_GROUPS, KEYS, NO_ROW, OFFSETS, RECORDS, Column
from alignkd.storage.schema.commit_record import CommitRecord, FileEntry
from alignkd.storage.schema.manifest import Manifest

# smaller arrays are copied, so that keeping one does not keep a whole record in memory
COPY_BYTES = 1 << 14

Rows = dict[str, NDArray[Any]]
_BYTE = np.dtype(np.uint8)


class TarSource:
    """See `alignkd.storage.layouts.protocol.ShardSource`."""

    def __init__(
        self,
        files: StoreFiles,
        folder: str,
        name: str,
        manifest: Manifest,
        columns: Sequence[Column],
        commit: CommitRecord,
    ) -> None:
        self.files, self.folder, self.manifest, self.columns, self.commit = files, folder, manifest, columns, commit
        self._record_members = record_members(columns)
        groups = self._groups = self._group_numbers(columns)
        self._text_group = groups["text"]
        self._place_of = {member.name: place for place, member in enumerate(self._record_members)}
        self._cuts = [
            (c.name, groups[c.group], c.dtype, c.row_shape, c.row_bytes, c.width_field)
            for member in self._record_members
            if (c := member.column) is not None
        ]
        self._by_name = {column.name: column for column in columns}
        tar, self._idx_label = self._entry(f"{name}.tar"), files.label(f"{folder}/{name}.idx")
        idx = self._entry(f"{name}.idx")
        self._idx_bytes = idx.bytes
        self.index = self._read_index(idx)
        where = f"{self._idx_label}: shard {commit.shard}"
        self._tables = tables_from(columns, self.index.offsets, self.index.records, where)
        if problem := self._problem(tar):
            raise self._wrong(self._idx_label, problem)
        self._entry_of_tar = tar
        self._tar: ByteFile | None = None
        self._opened()
        self._offsets = np.ascontiguousarray(self.index.places["offset"])

    def tables(self) -> ShardTables:
        return self._tables

    def keys(self) -> NDArray[Any]:
        return self.index.keys.copy()

    def ids(self) -> NDArray[Any]:
        return self.index.ids.copy()

    def texts(self) -> NDArray[Any]:
        lengths = np.diff(self._tables.ends("text")).tolist()
        texts = [self._text(record, length) for record, length in enumerate(lengths)]
        return np.concatenate([np.empty(0, np.uint8), *texts])

    def rows(self, record: int, numbers: dict[str, int], *, whole: bool = True) -> ReadRows:
        tables = self._tables
        if not whole:
            return _FewRows(self, record, numbers).__getitem__
        arrays = _RecordRows(self, record)
        source = numbers["image_record"]
        if source in (record, NO_ROW):
            start, _, end = self.index.parts[record].tolist()
            self._cut(record, self._read(record, start, end), arrays, numbers, own=True, image=True)
        else:
            start, end, _ = self.index.parts[record].tolist()
            self._cut(record, self._read(record, start, end), arrays, numbers, own=True, image=False)
            _, start, end = self.index.parts[source].tolist()
            if end > start:
                buffer = self._read(source, start, end)
                self._cut(source, buffer, arrays, tables.numbers(source), own=False, image=True)

        return arrays.__getitem__

    def member_rows(self, record: int, numbers: dict[str, int], name: str) -> NDArray[Any]:
        """A record's rows of one column; no other member is read."""
        if name == "text":
            first, last = self._tables.ends("text")[record : record + 2].tolist()
            return self._text(record, last - first)
        column, source = self._by_name[name], numbers["image_record"]
        of = source if column.group in IMAGE_GROUPS and source != NO_ROW else record
        place = self._place_of.get(name)
        if place is None or self._offsets[of, place] < 0:
            return self.rows_without_member(record, name)
        starts, stops = self._tables.bounds(record, numbers)
        group = self._groups[column.group]
        shape = column.shape_of(stops[group] - starts[group], numbers)
        return np.ndarray(shape, column.dtype, self._member(of, place))

    def rows_without_member(self, record: int, name: str) -> NDArray[Any]:
        """A record's rows of a column that is in the index or that the record does not have."""
        if name == KEYS:
            return self.index.keys[record : record + 1].copy()
        if name == "id":
            first, last = self._tables.ends("id")[record : record + 2].tolist()
            return self.index.ids[first:last].copy()
        column = self._by_name[name]
        return np.empty((0, *column.row_shape), column.dtype)

    def table_bytes(self) -> int:
        return 2 * self._idx_bytes

    def hold(self, limit: int) -> int:
        return 0  # a record is one range of bytes

    def release(self) -> None:
        self._tar = None

    def check_descriptions(self) -> None:
        index = self.index
        for start, end, committed, expected in (
            (0, index.head_bytes, index.head_checksum, opening(self.manifest)),
            (index.tail_start, index.tar_bytes, index.tail_checksum, self._closing()),
        ):
            data = self._pread(start, end)
            if (found := crc32c(data)) != committed:
                raise self._wrong(self._tar_label, f"byte {start}: crc32c is {found:08x}, indexed {committed:08x}")
            if data.tobytes() != expected:
                raise self._wrong(self._tar_label, f"byte {start}: is not a member of this store's shards")

    def damage(self, *, headers: bool = True) -> list[str]:
        problems = []
        for record in range(len(self._tables)):
            try:
                problems += self._record_problems(record, headers=headers)
            except CorruptStoreError as error:
                problems.append(str(error))
        try:
            self.check_descriptions()
        except CorruptStoreError as error:
            problems.append(str(error))
        return problems

    def structure_problems(self) -> list[str]:
        return []  # the index was compared with the tables when it was opened

    def _read_index(self, entry: FileEntry) -> TarIndex:
        path, what = f"{self.folder}/{entry.path}", f"shard {self.commit.shard}"
        file = self.files.open(path, what, size=entry.bytes, sha256=entry.sha256)
        if not file.size == entry.bytes <= MAX_BYTES:
            raise self._wrong(self._idx_label, f"holds {file.size} bytes, committed {entry.bytes}")
        content = np.empty(file.size, np.uint8)
        file.pread_into([content], 0)
        data = content.tobytes()
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            # a problem inside is more specific than the sha256
            parse_index(data, self._idx_label)
            raise self._wrong(self._idx_label, f"sha256 is {found[:12]}, committed {entry.sha256[:12]}")
        index = parse_index(data, self._idx_label)
        shapes = {column.name: column.row_shape for column in self.columns}
        expected = (*shapes[OFFSETS], *shapes[RECORDS], len(self._record_members), self.commit.num_records)
        held = (index.offsets.shape[1], index.records.shape[1], index.places.shape[1], len(index.records))
        if held != expected:
            raise self._wrong(self._idx_label, f"has groups, fields, members, records {held}, expected {expected}")
        return index

    @staticmethod
    def _group_numbers(columns: Sequence[Column]) -> dict[str, int]:
        [labels] = [column.labels for column in columns if column.name == OFFSETS]
        return {group: number for number, group in enumerate(labels)}

    def _problem(self, tar: FileEntry) -> str | None:
        index = self.index
        if index.tar_bytes != tar.bytes:
            return f"describes a tar of {index.tar_bytes} bytes, committed {tar.bytes}"
        if len(index.ids) != self._tables.rows_of("id"):
            return f"holds {len(index.ids)} bytes of ids, expected {self._tables.rows_of('id')} by the offsets"
        return places_problem(index, self._tables, self._record_members)

    def _read(self, record: int, start: int, end: int) -> Bytes:
        """Verified bytes of one or both parts of a record."""
        data = self._pread(start, end)
        begin, image, stop = self.index.parts[record].tolist()
        for part, first, last in ((0, begin, image), (1, image, stop)):
            if start <= first < last <= end:
                self._verify(record, part, data[first - start : last - start], first)
        return data

    def _verify(self, record: int, part: int, data: Bytes, start: int) -> None:
        found, committed = crc32c(data), int(self.index.part_checksums[record, part])
        if found == committed:
            return
        for name, (offset, size, checksum) in self._members(record):
            if start <= offset < start + len(data):
                actual = crc32c(data[offset - start : offset - start + size])
                if actual != checksum:
                    where = f"{self._tar_label}, record {record}, member {name}"
                    raise self._wrong(where, f"crc32c is {actual:08x}, indexed {checksum:08x}")
        where = f"{self._tar_label}, record {record}, headers"
        raise self._wrong(where, f"crc32c is {found:08x}, indexed {committed:08x}")

    def _text(self, record: int, length: int) -> NDArray[np.uint8]:
        return text_rows(self._member(record, 0), length)

    def _member(self, record: int, place: int) -> Bytes:
        """Verified bytes of one member without its header."""
        offset, size, committed = self.index.places[record, place].item()
        data = self._pread(offset, offset + size)
        if (found := crc32c(data)) != committed:
            where = f"{self._tar_label}, record {record}, member {self._record_members[place].name}"
            raise self._wrong(where, f"crc32c is {found:08x}, indexed {committed:08x}")
        return data

    def _members(self, record: int) -> Iterator[tuple[str, tuple[int, int, int]]]:
        names = [member.name for member in self._record_members]
        return zip(names, self.index.places[record].tolist(), strict=True)

    def _cut(self, record: int, data: Bytes, arrays: Rows, numbers: dict[str, int], *, own: bool, image: bool) -> None:
        """Put the arrays of a record's members into `arrays`; the index was checked, so all of them are in the data."""
        begin, middle, _ = self.index.parts[record].tolist()
        start = begin if own else middle
        offsets = self._offsets[record].tolist()
        firsts, lasts = self._tables.offsets[record].tolist(), self._tables.offsets[record + 1].tolist()
        if own:
            offset, size, _ = self.index.places[record, 0].item()
            text = self._text_group
            arrays["text"] = text_rows(data[offset - start : offset - start + size], lasts[text] - firsts[text])
        for (name, group, dtype, row_shape, row_bytes, width_field), offset in zip(
            self._cuts, offsets[1:], strict=True
        ):
            if offset < 0 or not (own if offset < middle else image):
                continue
            rows = lasts[group] - firsts[group]
            shape = (rows, *row_shape)
            if width_field:
                shape = (*shape[:-1], numbers[width_field])
            array: NDArray[Any] = np.ndarray(shape, dtype, data, offset - start)
            arrays[name] = array.copy() if rows * row_bytes < COPY_BYTES else array

    def _record_problems(self, record: int, *, headers: bool) -> list[str]:
        """Raise for wrong checksums; describe headers that are not those of the record's arrays."""
        start, _, end = self.index.parts[record].tolist()
        data = self._read(record, start, end)
        if not headers:
            return []
        problem = frame_problem(self.index, self._tables, self._record_members, record, data)
        return [f"{self._tar_label}, record {record}: {problem}; {REPAIR}"] if problem else []

    def _closing(self) -> bytes:
        members = int(np.count_nonzero(self.index.places["offset"] >= 0))
        rows = dict(zip(self._tables.groups, self._tables.offsets[-1].tolist(), strict=True))
        return closing(len(self._tables), members, rows)

    def _pread(self, start: int, end: int) -> Bytes:
        data = empty((end - start,), _BYTE)
        (self._tar or self._opened()).pread_into([data], start)
        return data

    def _opened(self) -> ByteFile:
        """Open the tar, again after `release`."""
        entry, path = self._entry_of_tar, f"{self.folder}/{self._entry_of_tar.path}"
        file = self.files.open(path, f"shard {self.commit.shard}", size=entry.bytes, sha256=entry.sha256)
        if file.size != entry.bytes:
            raise self._wrong(file.label, f"holds {file.size} bytes, committed {entry.bytes}")
        self._tar, self._tar_label = file, file.label
        return file

    def _entry(self, path: str) -> FileEntry:
        for entry in self.commit.files:
            if entry.path == path:
                return entry
        raise self._wrong(self.files.label(self.folder), f"the commit record has no {path}")

    def _wrong(self, where: str, problem: str) -> CorruptStoreError:
        return CorruptStoreError(f"{where}: {problem}; {REPAIR}")


class _RecordRows(Rows):
    """A record's rows by column; columns without a member are made on demand."""

    def __init__(self, source: TarSource, record: int) -> None:
        self._source, self._record = source, record

    def __missing__(self, name: str) -> NDArray[Any]:
        return self._source.rows_without_member(self._record, name)


class _FewRows(Rows):
    """A record's rows by column, each read when it is asked for."""

    def __init__(self, source: TarSource, record: int, numbers: dict[str, int]) -> None:
        self._source, self._record, self._numbers = source, record, numbers

    def __missing__(self, name: str) -> NDArray[Any]:
        return self._source.member_rows(self._record, self._numbers, name)
