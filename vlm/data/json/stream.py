"""A JSON list or JSON lines of any size as a sequence: an index of byte ranges, entries read on request."""

import hashlib
import json
import operator
import os
import weakref
from collections.abc import Callable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from alignkd.disk.file_version import FileVersion
from alignkd.disk.opening import NotRegularError, open_regular, regular_descriptor
from alignkd.vlm.data.json.gzipped import Unpacked, Unpacking, check_content, is_gzipped
from alignkd.vlm.data.json.index import EntryIndex, beyond_limits, index_entries
from alignkd.vlm.data.json.refusals import json_refusal
from alignkd.vlm.data.json.window import WINDOW_BYTES, JsonError, line_and_column
from alignkd.vlm.errors import InputError, unreadable

LINES_SUFFIXES = (".jsonl", ".ndjson")
# what follows the last entry in files as programs write them
_ENDINGS = tuple(f"{space}{mark}{end}".encode() for space in ("", "\n", "\r\n") for mark in ("]", "") for end in
                 ("", "\n", "\r\n"))  # fmt: skip
_LONGEST_ENDING = 64
# Called with bytes read so far and bytes in all.
ReadProgress = Callable[[int, int], None]


class JsonEntries:
    """The entries of a JSON list or of JSON lines, also gzipped.

    The first line decides between the two. Where it does not, because a file holds one object only, the suffixes
    `.jsonl` and `.ndjson` mean JSON lines. The file is read once and checked as `json.loads` does; 16 bytes per entry
    stay in memory. Any process or thread may read entries, including pickled copies: each process opens the file on
    first use and reads at absolute positions, so readers do not disturb each other. A byte order mark is skipped. A
    gzipped file is unpacked once, into a temporary file without a name.

    Args:
        path: the file; it must not change while in use.
        window: bytes read at once.
        progress: called while the file is read through.

    Attributes:
        sha256: sha256 of the file's bytes (of a gzipped file: of what it unpacks to), from the same pass.

    Raises:
        InputError: no such file; broken JSON with line and column; not UTF-8; neither a list nor JSON lines.
    """

    def __init__(self, path: Path, *, window: int = WINDOW_BYTES, progress: ReadProgress | None = None) -> None:
        self.path = path
        self._descriptor: int | None = None
        self._version, index, self._unpacked = _read_through(path, window, progress)
        self._starts, self._ends, self.sha256 = index.starts, index.ends, index.sha256

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Any:
        """The JSON value of one entry.

        Raises:
            InputError: the file has changed since it was indexed, or is no longer readable.
        """
        number = operator.index(number)
        if not -len(self) <= number < len(self):
            raise IndexError(f"entry {number} of {len(self)}")
        data = self._read(int(self._starts[number]), int(self._ends[number]))
        try:
            return json.loads(data.decode("utf-8"))
        except RecursionError as error:
            raise InputError(f"{self.path}: entry {number}: {beyond_limits(error)}; flatten it") from error
        except ValueError as error:
            raise self._changed(f"entry {number} no longer parses") from error

    def sha256_of_first(self, count: int) -> str:
        """sha256 of the bytes from the start of the file to the end of the entry before `count`; 64 hex digits.

        A file to which entries were added has the same one. Two files with equal entries may differ in it.
        """
        digest, position, end = hashlib.sha256(), 0, int(self._ends[count - 1]) if count else 0
        while position < end:
            data = self._read(position, min(end, position + WINDOW_BYTES))
            digest.update(data)
            position += len(data)
        return digest.hexdigest()

    def longest(self, count: int) -> list[int]:
        """Numbers of the `count` longest entries in bytes, ascending."""
        sizes = self._ends - self._starts
        found = np.argpartition(sizes, -count)[-count:] if len(sizes) > count else np.arange(len(sizes))
        return sorted(found.tolist())

    def line_of(self, number: int) -> int:
        """The line, from 1, in which an entry starts. Reads the file up to there."""
        start = int(self._starts[range(len(self))[number]])
        return line_and_column(cast(BinaryIO, _Sequential(self._read)), start)[0]

    def begins_with(self, count: int, sha256: str) -> bool:
        """Whether the first `count` entries, as a file of their own, have this sha256.

        It may be that of the bytes up to the end of the last entry, or that of a whole file: then the file ended as
        this one does, or in one of the usual ways.
        """
        if not 0 < count <= len(self):
            return False
        digest, position, end = hashlib.sha256(), 0, int(self._ends[count - 1])
        while position < end:
            data = self._read(position, min(end, position + WINDOW_BYTES))
            digest.update(data)
            position += len(data)
        last = int(self._ends[-1])
        for ending in (b"", *_ENDINGS, self._read(last, last + _LONGEST_ENDING)):
            whole = digest.copy()
            whole.update(ending)
            if whole.hexdigest() == sha256:
                return True
        return False

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_descriptor": None}

    def _read(self, start: int, end: int) -> bytes:
        try:
            descriptor = self._open()
            data = os.pread(descriptor, end - start, start)
            version = self._version if self._unpacked else FileVersion.of(descriptor)
        except OSError as error:
            raise unreadable(self.path, error, "can no longer be read") from error
        if version != self._version:
            raise self._changed(f"now {version}")
        return data

    def _open(self) -> int:
        if self._unpacked is not None:
            if (shared := self._unpacked.descriptor()) is not None:
                return shared
            # a pickled copy, and the process that unpacked the file has ended
            version, _, self._unpacked = _read_through(self.path, WINDOW_BYTES, None)
            if version != self._version or self._unpacked is None:
                raise self._changed(f"now {version}")
            return self._open()
        if self._descriptor is None:
            descriptor = regular_descriptor(self.path)
            weakref.finalize(self, os.close, descriptor)
            self._descriptor = descriptor
        return self._descriptor

    def _changed(self, found: str) -> InputError:
        return InputError(f"{self.path}: changed while in use, was {self._version} at the start, {found}; start again")


class _Sequential:
    """What `read(start, end)` returns, as a stream."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        self._read, self._position = read, 0

    def read(self, size: int) -> bytes:
        data = self._read(self._position, self._position + size)
        self._position += len(data)
        return data


def is_json_lines(path: Path) -> bool:
    """Whether the suffix means one JSON value per line."""
    return path.name.lower().removesuffix(".gz").endswith(LINES_SUFFIXES)


def _read_through(
    path: Path, window: int, progress: ReadProgress | None
) -> tuple[FileVersion, EntryIndex, Unpacked | None]:
    try:
        with open_regular(path) as stream:  # a pipe would block and cannot be read twice
            version = FileVersion.of(stream.fileno())
            report = None if progress is None else (lambda done: progress(done, version.num_bytes))
            index, unpacked = _indexed(stream, path, window, report)
            now = FileVersion.of(stream.fileno())
    except NotRegularError as error:
        raise InputError(f"{path}: {error.strerror}; give a JSON file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if now != version or (unpacked is None and index.num_bytes != version.num_bytes):
        raise InputError(f"{path}: changed while being read, was {version}, now {now}; wait until it is complete")
    return version, index, unpacked


def _indexed(
    stream: BufferedReader, path: Path, window: int, report: Callable[[int], None] | None
) -> tuple[EntryIndex, Unpacked | None]:
    lines = True if is_json_lines(path) else None
    if not is_gzipped(stream):
        try:
            return index_entries(stream, lines=lines, window=window, progress=report), None
        except JsonError as fault:
            raise json_refusal(path, fault, stream) from fault
    check_content(stream, path)
    unpacking = Unpacking(stream, path, report)
    try:
        index = index_entries(cast(BinaryIO, unpacking), lines=lines, window=window)
    except JsonError as fault:
        raise json_refusal(path, fault, unpacking.file) from fault
    return index, unpacking.finished()
