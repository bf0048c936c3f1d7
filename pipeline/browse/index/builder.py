"""Fills an index in the background: what the file has is loaded, what it lacks is read from the store and added.

One process at a time writes the file: the one that holds the lock beside it. The others load what it adds, and one of
them continues when it ends. A shard that was committed again, or is gone, is dropped. No lock of a dump is taken.
"""

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.browse.index.columns import figure_names
from alignkd.pipeline.browse.index.database import DamagedIndexError, IndexFile, StoredShard
from alignkd.pipeline.browse.index.figures import OF_DISTRIBUTION, figures_of
from alignkd.pipeline.browse.index.place import FILE, LOCK, SEAL
from alignkd.pipeline.browse.index.shard_rows import CHEAP, ShardRows, read_rows
from alignkd.pipeline.browse.index.table import IdBlock, Table
from alignkd.storage.errors import RemoteError, StoreError
from alignkd.storage.files.checksum import file_crc32c
from alignkd.storage.files.exclusive import Lock
from alignkd.storage.layouts.rows import RecordCodec
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader, commit_identity
from alignkd.storage.schema.commit_record import committed_shards

# shards are added together, so that a store of many small shards does not wait for the disk after each
SECONDS_PER_TRANSACTION = 1.0
SECONDS_BETWEEN_LOOKS = 1.0
MAX_PROBLEMS = 100
# row numbers of dropped shards that a file may hold, besides as many as it uses
MAX_DROPPED = 10_000
MAX_FILES_MADE = 3
_FIGURE_TYPE = np.dtype("<f8")


@dataclass(frozen=True, kw_only=True)
class IndexState:
    """How far an index is.

    Attributes:
        indexed: records whose numbers and texts are known.
        figured: records all of whose figures are known too.
        total: records of the store.
        unusable: unusable samples; they are known from the beginning.
        running: whether this process, or another one, still adds to the index.
        root_hash: of the content of the store that is indexed; None before all of it is.
        path: the file.
        problems: one line for each shard or record that cannot be read, and for what stopped the indexing; at most 100.
    """

    indexed: int
    figured: int
    total: int
    unusable: int
    running: bool
    root_hash: str | None
    path: str
    problems: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The state as values of JSON."""
        return asdict(self)


Progress = Callable[[IndexState], object]


class _StoppedError(Exception):
    pass


class Builder:
    """The background thread of one index."""

    def __init__(
        self, reader: StoreReader, table: Table, folder: Path, progress: Progress, *, fts: bool | None
    ) -> None:
        self.reader, self.table, self.path = reader, table, folder / FILE
        self._lock_path, self._seal_path = folder / LOCK, folder / SEAL
        self._progress, self._fts = progress, fts
        self.owner = reader.manifest.manifest_hash()
        # by base: place of the shard among those of the reader; of the file with this id
        self.place_of: dict[int, int] = {}
        self.file_id: str | None = None
        self._figures = _stages(figure_names(reader.manifest))
        self._loaded: dict[int, set[str]] = {}
        self._stop, self._done = threading.Event(), threading.Event()
        self._problems: list[str] = []
        self._root_hash: str | None = None
        self._codec = RecordCodec(reader.manifest)
        self._is_damaged, self._files_made = False, 0
        self._thread: threading.Thread | None = None
        self._thread_lock = threading.Lock()
        self._done.set()

    def start(self, *, damaged: bool = False) -> None:
        """Continue the index in a thread, unless one runs.

        Args:
            damaged: a search found the file damaged: make it anew.
        """
        with self._thread_lock:
            self._is_damaged |= damaged
            if self._done.is_set() and not self._stop.is_set():
                self._done.clear()
                self._thread = threading.Thread(target=self._run, daemon=True, name="index")
                self._thread.start()

    def stop(self) -> None:
        """End the thread; what was not yet added to the file is read again next time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def wait(self, seconds: float | None) -> bool:
        """Wait until the index is complete, or cannot be completed."""
        return self._done.wait(seconds)

    def state(self) -> IndexState:
        with self.table.lock:
            return IndexState(
                indexed=self.table.num_indexed,
                figured=self.table.num_figured,
                total=self.table.num_records,
                unusable=len(self.table.unusable),
                running=not self._done.is_set(),
                root_hash=self._root_hash,
                path=str(self.path),
                problems=tuple(self._problems),
            )

    def _run(self) -> None:
        try:
            while not self._finished():
                if self._stop.wait(SECONDS_BETWEEN_LOOKS):
                    return
        except _StoppedError:
            pass
        except (StoreError, OSError, sqlite3.Error) as error:
            self._problem(f"index {self.path}: {' '.join(str(error).split())}; the rest is not indexed")
        except Exception as error:  # the page shows it; a traceback in a terminal would not say where it belongs
            self._problem(f"index {self.path}: {type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            self._done.set()
            with suppress(Exception):  # of the caller
                self._progress(self.state())

    def _finished(self) -> bool:
        """Write the index if no other process does, else load what it has added; True if nothing is left to do."""
        self._lock_path.touch()
        lock = Lock.take(self._lock_path)
        if lock is None:
            with suppress(DamagedIndexError, FileNotFoundError):  # the writer makes it anew
                file = IndexFile(self.path, self.owner, create=False, fts=self._fts)
                try:
                    self._follow(file)
                    self._load(file)
                    self._find_root_hash()
                finally:
                    file.close()
            self._progress(self.state())
            return self._is_complete()
        try:
            while True:
                try:
                    self._write()
                    return True
                except DamagedIndexError:
                    self._remove_file()
        finally:
            lock.release()

    def _write(self) -> None:
        if self._is_damaged:
            self._remove_file()
        file = self._opened()
        try:
            self._follow(file)
            self._drop_old(file)
            self._load(file)
            self._progress(self.state())
            self._check_sealed()
            self._first_pass(file)
            self._keep_root_hash(file)
            for names in self._figures:
                self._second_pass(file, names)
            if self._is_damaged:
                raise DamagedIndexError(f"{self.path}: a search found damage")
            self._seal()
        finally:
            file.close()

    def _opened(self) -> IndexFile:
        try:
            return IndexFile(self.path, self.owner, create=True, fts=self._fts)
        except DamagedIndexError:
            self._remove_file()
            return IndexFile(self.path, self.owner, create=True, fts=self._fts)

    def _remove_file(self) -> None:
        """Only the process with the lock writes a journal, so none belongs to a new file of this name."""
        self._is_damaged = False
        self._files_made += 1
        if self._files_made > MAX_FILES_MADE:
            raise StoreError(f"{self.path} was damaged {MAX_FILES_MADE} times; check the disk")
        for path in (self._seal_path, self.path.with_name(f"{FILE}-journal"), self.path):
            path.unlink(missing_ok=True)

    def _check_sealed(self) -> None:
        """Compare the checksum of a complete file, if it has one: words have none of their own, as parts do."""
        try:
            expected = self._seal_path.read_bytes()
        except FileNotFoundError:
            return
        if expected != self._checksum().encode():
            raise DamagedIndexError(f"{self.path}: its checksum differs")

    def _seal(self) -> None:
        if not self._seal_path.exists():
            write_whole(self._seal_path, self._checksum())

    def _checksum(self) -> str:
        return f"{self.path.stat().st_size} {file_crc32c(self.path):08x}"

    def _changing(self, file: IndexFile) -> AbstractContextManager[None]:
        """A transaction; a file that changes has no checksum."""
        self._seal_path.unlink(missing_ok=True)
        return file.writing()

    def _follow(self, file: IndexFile) -> None:
        """Forget the row numbers of another file; the values in memory stay until they are loaded or read again."""
        if (found := file.meta("id")) != self.file_id:
            with self.table.lock:
                self.place_of, self._loaded, self.file_id = {}, {}, found
                self.table.changed()

    def _drop_old(self, file: IndexFile) -> None:
        """Drop shards that were committed again, or are gone; all, if most row numbers belong to dropped ones."""
        places = self._places()
        existing = set(committed_shards(self.reader.files))
        held = [shard for shard in file.shards() if self._is_current(shard, places, existing)]
        dropped = {shard.base for shard in file.shards()} - {shard.base for shard in held}
        if not dropped:
            return
        if file.num_ever() > 2 * sum(shard.records for shard in held) + MAX_DROPPED:
            raise DamagedIndexError(f"{self.path}: holds mostly dropped shards")
        with self._changing(file):
            for base in dropped:
                file.drop(base)

    def _is_current(self, shard: StoredShard, places: dict[int, int], existing: set[int]) -> bool:
        """A shard that the reader does not know stays if it exists: another process has a newer view of the store."""
        if shard.shard not in existing:
            return False
        place = places.get(shard.shard)
        if place is None or self.reader.commit_identities[place] == shard.identity:
            return True
        # the reader may be older than the index
        return commit_identity(self.reader.commits[place]) == shard.identity

    def _load(self, file: IndexFile) -> None:
        """Put what the file has into memory."""
        places, names = self._places(), file.part_names()
        identities = self.reader.commit_identities
        for shard in file.shards():
            place = places.get(shard.shard)
            if place is None or identities[place] != shard.identity:
                continue
            self._check_stop()
            new = names.get(shard.base, set()) - self._loaded.get(shard.base, set())
            if new:
                self._load_parts(shard, place, file.parts(shard.base, new))

    def _load_parts(self, shard: StoredShard, place: int, parts: dict[str, bytes]) -> None:
        rows = self.table.place_rows(place)
        if shard.records != rows.stop - rows.start:
            raise DamagedIndexError(f"{self.path}: shard {shard.shard} has {shard.records} records")
        known = self._loaded.setdefault(shard.base, set())
        if "index" not in known:
            values = {name: _array(parts, name, dtype, shard) for name, dtype in CHEAP.items()}
            keys = _array(parts, "keys", np.dtype(np.uint8), shard, width=32).reshape(-1, 32)
            try:
                ids = IdBlock.of_stored(parts.get("ids", b""))
            except UnicodeDecodeError:
                raise DamagedIndexError(f"{self.path}: shard {shard.shard} has ids that are no texts") from None
            if len(ids) != shard.records:
                raise DamagedIndexError(f"{self.path}: shard {shard.shard} has {len(ids)} ids")
            self._add_to_table(shard, place, values, keys, ids)
        found = {name: _array(parts, name, _FIGURE_TYPE, shard) for name in parts if name in self._figure_names()}
        if found:
            self.table.add_figures(place, found)
        known.update(parts)

    def _add_to_table(
        self, shard: StoredShard, place: int, values: dict[str, NDArray[Any]], keys: NDArray[Any], ids: IdBlock
    ) -> None:
        with self.table.lock:
            self.place_of[shard.base] = place
            self.table.add_shard(place, values, keys, ids)

    def _first_pass(self, file: IndexFile) -> None:
        held = set(self.place_of.values())
        waiting: list[tuple[int, ShardRows]] = []
        since = time.monotonic()
        for place in range(len(self.reader.commits)):
            if place in held:
                continue
            self._check_stop()
            if (rows := self._read(place)) is not None:
                waiting.append((place, rows))
            if time.monotonic() - since > SECONDS_PER_TRANSACTION:
                self._add(file, waiting)
                waiting, since = [], time.monotonic()
        self._add(file, waiting)

    def _read(self, place: int) -> ShardRows | None:
        try:
            with self._opened_shard(place) as shard:
                return read_rows(shard, self.reader.manifest)
        except RemoteError:
            raise
        except (StoreError, ValueError) as error:
            self._problem(f"shard {self.reader.commits.shards[place]}: {' '.join(str(error).split())}")
            return None

    def _add(self, file: IndexFile, waiting: list[tuple[int, ShardRows]]) -> None:
        if not waiting:
            return
        added = []
        with self._changing(file):
            for place, rows in waiting:
                identity = self.reader.commit_identities[place]
                ids = IdBlock.of(rows.ids)
                parts = {name: values.tobytes() for name, values in rows.values.items()}
                parts |= {"keys": rows.keys.tobytes(), "ids": ids.data}
                shard = file.add(int(self.reader.commits.shards[place]), identity, parts, rows.texts)
                added.append((shard, place, rows, ids))
        for shard, place, rows, ids in added:
            self._loaded[shard.base] = {*CHEAP, "keys", "ids"}
            self._add_to_table(shard, place, rows.values, rows.keys, ids)
        self._progress(self.state())

    def _second_pass(self, file: IndexFile, names: tuple[str, ...]) -> None:
        waiting: list[tuple[int, int, dict[str, NDArray[np.float64]]]] = []
        since = time.monotonic()
        for base, place in sorted(self.place_of.items(), key=lambda item: item[1]):
            missing = tuple(name for name in names if name not in self._loaded[base])
            if not missing:
                continue
            self._check_stop()
            if (found := self._figures_of(place, missing)) is not None:
                waiting.append((base, place, found))
            if time.monotonic() - since > SECONDS_PER_TRANSACTION:
                self._add_figures(file, waiting)
                waiting, since = [], time.monotonic()
        self._add_figures(file, waiting)

    def _figures_of(self, place: int, names: tuple[str, ...]) -> dict[str, NDArray[np.float64]] | None:
        number = int(self.reader.commits.shards[place])
        try:
            with self._opened_shard(place) as shard:
                found = figures_of(shard, self.reader.manifest, names, self._stop.is_set)
        except RemoteError:
            raise
        except (StoreError, ValueError) as error:
            self._problem(f"shard {number}: {' '.join(str(error).split())}")
            return None
        if found is None:
            raise _StoppedError
        values, problems = found
        for problem in problems:
            self._problem(problem)
        return values

    def _add_figures(self, file: IndexFile, waiting: list[tuple[int, int, dict[str, NDArray[np.float64]]]]) -> None:
        if not waiting:
            return
        with self._changing(file):
            for base, _, found in waiting:
                file.add_parts(base, {name: values.astype(_FIGURE_TYPE).tobytes() for name, values in found.items()})
        for base, place, found in waiting:
            self._loaded[base].update(found)
            self.table.add_figures(place, found)
        self._progress(self.state())

    def _keep_root_hash(self, file: IndexFile) -> None:
        self._find_root_hash()
        if self._root_hash is not None and file.meta("root_hash") != self._root_hash:
            with self._changing(file):
                file.set_meta("root_hash", self._root_hash)

    def _find_root_hash(self) -> None:
        if self._root_hash is None and self.table.num_indexed == self.table.num_records:
            reader = self.reader
            self._root_hash = root_hash(reader.files, reader.manifest, reader.commits.shards.tolist())

    def _is_complete(self) -> bool:
        return self.table.num_indexed == self.table.num_figured == self.table.num_records

    def _places(self) -> dict[int, int]:
        return {int(shard): place for place, shard in enumerate(self.reader.commits.shards)}

    def _figure_names(self) -> set[str]:
        return {name for names in self._figures for name in names}

    def _opened_shard(self, place: int) -> "_ClosedAfterwards":
        return _ClosedAfterwards(
            lambda: OpenShard(self.reader.files, self.reader.manifest, self._codec, self._commit(place))
        )

    def _commit(self, place: int) -> Any:
        commit = self.reader.commits[place]
        if commit_identity(commit) != self.reader.commit_identities[place]:
            raise StoreError("was done again since this process opened the store; open the store again")
        return commit

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError

    def _problem(self, line: str) -> None:
        if line not in self._problems and len(self._problems) < MAX_PROBLEMS:
            self._problems.append(line)


class _ClosedAfterwards:
    """An open shard whose files are closed at the end of a block."""

    def __init__(self, open_shard: Callable[[], OpenShard]) -> None:
        self._open = open_shard

    def __enter__(self) -> OpenShard:
        self._shard = self._open()
        return self._shard

    def __exit__(self, *_: object) -> None:
        self._shard.release()


def _stages(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Figures that are read together: those of one target."""
    stages: dict[str, list[str]] = {}
    for name in names:
        stages.setdefault("distribution" if name in OF_DISTRIBUTION else name, []).append(name)
    return [tuple(stage) for stage in stages.values()]


def _array(
    parts: dict[str, bytes], name: str, dtype: np.dtype[Any], shard: StoredShard, width: int = 1
) -> NDArray[Any]:
    data = parts.get(name)
    if data is None or len(data) != shard.records * width * dtype.itemsize:
        raise DamagedIndexError(f"shard {shard.shard} of the index lacks {name}")
    return np.frombuffer(data, dtype)
