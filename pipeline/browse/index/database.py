"""The file of an index: SQLite, one row per shard and column, and the words of all conversations for the search.

    meta     what the index belongs to
    shard    committed shards that were read; `base` is the row number of the first record in `text`
    part     columns of a shard as arrays of bytes, each with its crc32c
    text     words of each record, by row number; only an inverted list is kept, not the text

A shard is identified by its number and the checksum of its commit record. Row numbers are never used twice, because an
inverted list cannot forget the words of one row: those of dropped shards remain and are ignored.
"""

import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.browse.index.words import Phrase, fts_query, matches, words_of
from alignkd.storage.files.checksum import crc32c

# another number when the meaning of a stored column changes
VERSION = 1
BUSY_SECONDS = 20.0
WRITER_CACHE_KIB = 64 << 10

_TABLES = (
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE shard(base INTEGER PRIMARY KEY, shard INTEGER NOT NULL, identity INTEGER NOT NULL, "
    "records INTEGER NOT NULL, UNIQUE(shard, identity))",
    "CREATE TABLE part(base INTEGER NOT NULL, name TEXT NOT NULL, crc32c INTEGER NOT NULL, data BLOB NOT NULL, "
    "UNIQUE(base, name))",
)
_FTS = "CREATE VIRTUAL TABLE text USING fts5(words, content='', columnsize=0, tokenize='ascii')"
_PLAIN = "CREATE TABLE text(number INTEGER PRIMARY KEY, words TEXT NOT NULL)"
# SQLITE_ERROR (a table is missing), CORRUPT, CONSTRAINT (rows that we did not write), FORMAT, NOTADB
_DAMAGE = (1, 11, 19, 24, 26)
# a row number of SQLite has 18 digits and some of those with 19
MAX_DIGITS = 18


class DamagedIndexError(Exception):
    """The file is not an index of this store, or it is damaged: make it anew."""


@dataclass(frozen=True, kw_only=True)
class StoredShard:
    """A shard in the index: its number, the checksum of its commit record, first row number and number of records."""

    shard: int
    identity: int
    base: int
    records: int


def has_fts5() -> bool:
    """Whether this SQLite has the full-text search; without it the search reads the words of every record."""
    with _closing(sqlite3.connect(":memory:")) as connection:
        options = {row[0] for row in connection.execute("PRAGMA compile_options")}
    return "ENABLE_FTS5" in options


class IndexFile:
    """One connection to the file; used by one thread at a time."""

    def __init__(self, path: Path, owner: str, *, create: bool, fts: bool | None = None) -> None:
        """Open the file.

        Args:
            owner: what the index belongs to; another one counts as damage.
            create: make an absent file; only the process with the index's lock may write.
            fts: whether the search uses FTS5; None: if this SQLite has it.

        Raises:
            FileNotFoundError: the file is absent and `create` is not set.
            DamagedIndexError: see there.
            sqlite3.Error, OSError: the file cannot be opened.
        """
        self.path, self._fts = path, has_fts5() if fts is None else fts
        if not create and not path.exists():
            raise FileNotFoundError(path)
        self._connection = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode={'rwc' if create else 'rw'}",
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            with damage_noticed():
                self._prepare(owner, create)
            self._stat = path.stat()
            self.id = self.meta("id")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def is_in_place(self) -> bool:
        """Whether the path still names the file that was opened."""
        try:
            return os.path.samestat(self.path.stat(), self._stat)
        except FileNotFoundError:
            return False

    def shards(self) -> list[StoredShard]:
        """Every shard in the index."""
        with damage_noticed():
            rows = self._connection.execute("SELECT shard, identity, base, records FROM shard ORDER BY base").fetchall()
        if any(type(value) is not int for row in rows for value in row):
            raise DamagedIndexError(f"{self.path}: a shard without numbers")
        return [StoredShard(shard=row[0], identity=row[1], base=row[2], records=row[3]) for row in rows]

    def part_names(self) -> dict[int, set[str]]:
        """Base of each shard -> names of its parts."""
        found: dict[int, set[str]] = {}
        with damage_noticed():
            for base, name in self._connection.execute("SELECT base, name FROM part"):
                found.setdefault(base, set()).add(name)
        return found

    def parts(self, base: int, names: Iterable[str] | None = None) -> dict[str, bytes]:
        """The parts of a shard, verified; only those with these names, None: all.

        Raises:
            DamagedIndexError: a checksum differs.
        """
        wanted = None if names is None else set(names)
        with damage_noticed():
            rows = self._connection.execute("SELECT name, crc32c, data FROM part WHERE base = ?", (base,)).fetchall()
        found = {}
        for name, checksum, data in rows:
            if wanted is not None and name not in wanted:
                continue
            if not isinstance(data, bytes) or crc32c(data) != checksum:
                raise DamagedIndexError(f"{self.path}: part {name} of row {base} is damaged")
            found[name] = data
        return found

    def find(self, phrases: list[Phrase]) -> NDArray[np.int64]:
        """Row numbers of the records whose conversation holds all phrases, ascending, int64."""
        with damage_noticed():
            if not self._fts:
                return self._scan(phrases)
            rows = self._connection.execute(
                "SELECT rowid FROM text WHERE text MATCH ? ORDER BY rowid", (fts_query(phrases),)
            )
            return np.fromiter((row[0] for row in rows), np.int64)

    def meta(self, name: str) -> str | None:
        """A stored remark."""
        with damage_noticed():
            row = self._connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction: all that is written in the block becomes visible, or nothing."""
        with damage_noticed():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def set_meta(self, name: str, value: str) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def add(self, shard: int, identity: int, parts: Mapping[str, bytes], texts: Sequence[str]) -> StoredShard:
        """Add a shard with one text for each record."""
        base = self.num_ever() + 1
        self.set_meta("next", str(base + len(texts)))
        self._connection.execute("INSERT INTO shard VALUES (?, ?, ?, ?)", (base, shard, identity, len(texts)))
        self.add_parts(base, parts)
        column = "rowid" if self._fts else "number"
        rows = ((base + number, text if self._fts else " ".join(words_of(text))) for number, text in enumerate(texts))
        self._connection.executemany(f"INSERT INTO text({column}, words) VALUES (?, ?)", rows)
        return StoredShard(shard=shard, identity=identity, base=base, records=len(texts))

    def add_parts(self, base: int, parts: Mapping[str, bytes]) -> None:
        """Add columns of a shard."""
        rows = [(base, name, crc32c(data), data) for name, data in parts.items()]
        self._connection.executemany("INSERT OR REPLACE INTO part VALUES (?, ?, ?, ?)", rows)

    def drop(self, base: int) -> None:
        """Remove a shard."""
        self._connection.execute("DELETE FROM shard WHERE base = ?", (base,))
        self._connection.execute("DELETE FROM part WHERE base = ?", (base,))

    def num_ever(self) -> int:
        """Row numbers that were ever given, those of dropped shards too."""
        found = self.meta("next") or "1"
        if not (found.isascii() and found.isdigit() and len(found) <= MAX_DIGITS and int(found) > 0):
            raise DamagedIndexError(f"{self.path}: its next row number is {found[:40]!r}")
        return int(found) - 1

    def _prepare(self, owner: str, create: bool) -> None:
        run = self._connection.execute
        run("PRAGMA trusted_schema = OFF")
        run("PRAGMA cell_size_check = ON")
        # not WAL: its shared memory does not work on network file systems
        run("PRAGMA journal_mode = TRUNCATE" if create else "PRAGMA query_only = ON")
        found = run("SELECT type, name, sql FROM sqlite_master").fetchall()
        if not found and create:
            run("PRAGMA synchronous = NORMAL")
            with self.writing():
                for statement in (*_TABLES, _FTS if self._fts else _PLAIN):
                    run(statement)
                self.set_meta("owner", owner)
                self.set_meta("id", uuid.uuid4().hex)
                self.set_meta("version", str(VERSION))
        elif not self._is_ours(found):
            raise DamagedIndexError(f"{self.path}: holds other tables")
        if (self.meta("owner"), self.meta("version")) != (owner, str(VERSION)):
            raise DamagedIndexError(f"{self.path}: is of another store or another version")
        if create:
            run("PRAGMA synchronous = NORMAL")
            # a transaction that spills its pages would lock readers out until it ends
            run(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
            run("PRAGMA cache_spill = OFF")

    def _is_ours(self, found: list[tuple[str, str, str | None]]) -> bool:
        """Whether the file has our tables and nothing else: a stranger's file may have triggers and views."""
        own = {statement for kind, name, statement in found if statement and not name.startswith("text_")}
        shadows = {name for _, name, _ in found if name.startswith("text_")}
        kinds = {kind for kind, _, _ in found}
        return (
            own == {*_TABLES, _FTS if self._fts else _PLAIN}
            and shadows <= {"text_data", "text_idx", "text_docsize", "text_config", "text_content"}
            and kinds <= {"table", "index"}
        )

    def _scan(self, phrases: list[Phrase]) -> NDArray[np.int64]:
        rows = self._connection.execute("SELECT number, words FROM text ORDER BY number")
        found = (number for number, words in rows if all(matches(words.split(), phrase) for phrase in phrases))
        return np.fromiter(found, np.int64)


@contextmanager
def damage_noticed() -> Iterator[None]:
    """Turn SQLite's errors about a damaged file into DamagedIndexError."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code is None or code & 0xFF in _DAMAGE:
            raise DamagedIndexError(str(error)) from error
        raise


@contextmanager
def _closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()
