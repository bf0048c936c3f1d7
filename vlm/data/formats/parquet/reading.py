"""Reading Parquet with pyarrow: the end of a file, and its rows in batches of bounded size."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from alignkd.disk.file_version import FileVersion
from alignkd.vlm.data.formats.hashing import check_unchanged
from alignkd.vlm.errors import InputError, one_line, unreadable

# Of a batch of rows, as stored in the file without compression.
BATCH_BYTES = 8 << 20
MAX_BATCH_ROWS = 1024
# Of decoded batches in one process. The number limits what Python objects add to the bytes of short texts.
CACHE_BYTES = 64 << 20
MAX_CACHED = 16
# Positions in row groups from which reading goes on; each holds a file open and a buffer per column.
MAX_CURSORS = 4
BUFFER_BYTES = 256 << 10


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the end of a file describes.

    Attributes:
        columns: names of the columns.
        group_rows: number of rows of each row group.
        group_bytes: uncompressed bytes of each row group.
        binary: paths (`images.list.element.bytes`) of the columns of bytes that are not all null.
    """

    columns: tuple[str, ...]
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    binary: tuple[str, ...]


def read_layout(path: Path) -> Layout:
    """Read the end of a file.

    Raises:
        InputError: no Parquet file, damaged or truncated.
    """
    with _faults_of(path), pq.ParquetFile(path, memory_map=False, pre_buffer=False) as file:
        metadata, schema = file.metadata, file.schema
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        return Layout(
            columns=tuple(file.schema_arrow.names),
            group_rows=tuple(group.num_rows for group in groups),
            group_bytes=tuple(group.total_byte_size for group in groups),
            binary=tuple(
                schema.column(number).path
                for number in range(len(schema))
                if _is_binary(schema.column(number)) and any(_has_values(group.column(number)) for group in groups)
            ),
        )


def _is_binary(column: Any) -> bool:
    return bool(column.physical_type == "BYTE_ARRAY" and column.logical_type.type == "NONE")


def _has_values(chunk: Any) -> bool:
    statistics = chunk.statistics
    known = statistics is not None and statistics.has_null_count
    return chunk.num_values > 0 and not (known and statistics.null_count == chunk.num_values)


@dataclass
class _Cursor:
    """A position in a row group: the next batch begins at `row`."""

    file: pq.ParquetFile
    batches: Iterator[pa.RecordBatch]
    row: int = 0


@dataclass(frozen=True)
class _Batch:
    """Decoded rows; in the place of one that is no Python value there is the error. `num_bytes` is their size."""

    rows: list[dict[str, Any] | ValueError | OverflowError]
    num_bytes: int

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> "_Batch":
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError):
            rows = [_row(batch, number) for number in range(batch.num_rows)]
        return cls(rows, batch.get_total_buffer_size())


def _row(batch: pa.RecordBatch, number: int) -> dict[str, Any] | ValueError | OverflowError:
    try:
        row: dict[str, Any] = batch.slice(number, 1).to_pylist()[0]
    except (ValueError, OverflowError) as error:  # a text that is not UTF-8, a time beyond Python's
        return error
    return row


class _Batches:
    """The last decoded batches of all files of this process, and the positions from which reading goes on.

    One thread decodes at a time: neighbouring rows are requested by all threads at about the same time, and lie in the
    same batch.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        # (row group, first row) -> batch, the last used one at the end
        self.decoded: OrderedDict[tuple[RowGroup, int], _Batch] = OrderedDict()
        self.cursors: OrderedDict[RowGroup, _Cursor] = OrderedDict()
        self.num_bytes = 0

    def find(self, group: "RowGroup", row: int) -> tuple[_Batch, int] | None:
        """The cached batch with a row, and the row's number in it."""
        for key in reversed(self.decoded):
            found, start = key
            if found == group and start <= row < start + len(self.decoded[key].rows):
                self.decoded.move_to_end(key)
                return self.decoded[key], row - start
        return None

    def keep(self, key: tuple["RowGroup", int], batch: _Batch) -> None:
        """Add a batch and drop the oldest ones beyond the limits."""
        self.decoded[key] = batch
        self.num_bytes += batch.num_bytes
        while len(self.decoded) > 1 and (self.num_bytes > CACHE_BYTES or len(self.decoded) > MAX_CACHED):
            _, dropped = self.decoded.popitem(last=False)
            self.num_bytes -= dropped.num_bytes

    def keep_cursor(self, group: "RowGroup", cursor: _Cursor) -> None:
        """Add a position and close the oldest ones beyond the limit."""
        self.cursors[group] = cursor
        while len(self.cursors) > MAX_CURSORS:
            self.cursors.popitem(last=False)[1].file.close()


_batches = _Batches()


def _start_anew() -> None:
    """In a forked child: the lock may be held by a thread of the parent, and files share a position with it."""
    global _batches
    _batches = _Batches()


os.register_at_fork(after_in_child=_start_anew)


@dataclass(frozen=True)
class RowGroup:
    """A row group of a file, and what to read of it.

    Attributes:
        number: number of the row group in the file.
        columns: names of the columns.
        batch_rows: number of rows that are decoded at once.
    """

    path: Path
    version: FileVersion
    number: int
    columns: tuple[str, ...]
    batch_rows: int

    def row(self, row: int) -> dict[str, Any]:
        """A row as Python values.

        Raises:
            InputError: the file has changed, is damaged, or can no longer be read.
            ValueError, OverflowError: a value of the row is no Python value, such as a text that is not UTF-8.
        """
        batches = _batches
        with batches.lock:
            found = batches.find(self, row) or self._decode(batches, row)
        batch, offset = found
        values = batch.rows[offset]
        if isinstance(values, Exception):
            raise values
        return values

    def _decode(self, batches: _Batches, row: int) -> tuple[_Batch, int]:
        """Decode up to the batch with `row`, from where the last call stopped or from the start of the row group."""
        with _faults_of(self.path, f"row group {self.number}"):
            check_unchanged(self.path, self.version, FileVersion.of(self.path))
            cursor = batches.cursors.pop(self, None)
            if cursor is None or cursor.row > row:
                cursor = self._open()
            while True:
                arrow, start = next(cursor.batches), cursor.row
                cursor.row += arrow.num_rows
                if row < cursor.row:
                    break
        batch = _Batch.of(arrow)
        batches.keep((self, start), batch)
        batches.keep_cursor(self, cursor)
        return batch, row - start

    def _open(self) -> _Cursor:
        # a buffer: otherwise each column of the row group, of any size, is read into memory at once
        file = pq.ParquetFile(self.path, memory_map=False, pre_buffer=False, buffer_size=BUFFER_BYTES)
        batches = file.iter_batches(self.batch_rows, row_groups=[self.number], columns=self.columns, use_threads=False)
        return _Cursor(file, batches)


def batch_rows(num_rows: int, num_bytes: int) -> int:
    """How many rows of a row group to decode at once."""
    return max(1, min(MAX_BATCH_ROWS, num_rows * BATCH_BYTES // max(1, num_bytes)))


@contextmanager
def _faults_of(path: Path, part: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise unreadable(path, error) from error
        raise _damaged(path, part, error) from error
    except (pa.ArrowException, StopIteration) as error:
        raise _damaged(path, part, error) from error


def _damaged(path: Path, part: str, error: Exception) -> InputError:
    where = f" in {part}" if part else ""
    why = one_line(error)[:200].rstrip(". ") or "it ends early"
    return InputError(f"{path}: damaged or truncated Parquet{where} ({why}); fetch or write the file again")
