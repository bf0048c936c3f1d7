"""A damaged index is made anew; a damaged store is indexed as far as it can be read."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.browse.index import builder
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import open_index
from alignkd.storage.files.checksum import crc32c
from alignkd.storage.read.store import StoreReader


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_manifest: Any, make_record: Any, write_store: Any) -> Path:
    """A store of 30 samples with its index."""
    manifest = make_manifest(num_samples=30, shard_size=8)

    def record_of(index: int) -> Any:
        said = [{"from": "gpt", "value": " ".join(f"word{index % number}" for number in range(1, 300))}]
        return make_record(manifest, index, conversations=said)

    store: Path = write_store(
        tmp_path_factory.mktemp("whole") / "store", manifest, record_of=record_of, quarantine=(3,)
    )
    answers(store)
    return store


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


def answers(store: Path) -> Any:
    with open_index(StoreReader(store)) as index:
        assert index.wait(60) and index.state().problems == ()
        found = index.page(limit=100), index.positions(Filter(text="word7 word19")).tolist()
        assert index.wait(60)
        return found


def _cut(share: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _sql(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in statements:
                connection.execute(statement)

    return change


def _forged(*statements: str) -> Callable[[Path], None]:
    """The file has no checksum of its whole, as while it is made."""

    def change(path: Path) -> None:
        path.with_name("index.crc32c").unlink()
        _sql(*statements)(path)

    return change


def _ids(path: Path) -> None:
    """Bytes that are no UTF-8, with the checksum of these bytes."""
    path.with_name("index.crc32c").unlink()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for base, data in connection.execute("SELECT base, data FROM part WHERE name = 'ids'").fetchall():
            changed = bytes(byte if byte == 0xFF else 0xFE for byte in data)
            connection.execute(
                "UPDATE part SET data = ?, crc32c = ? WHERE base = ? AND name = 'ids'", (changed, crc32c(changed), base)
            )


# a shard that the index lacks, so that rows are added
_FORGOTTEN = "DELETE FROM shard WHERE shard = 1"


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "absent": lambda path: path.unlink(),
    "empty": _cut(0),
    "cut": _cut(0.5),
    "cut by a little": _cut(0.98),
    "header": lambda path: path.write_bytes(b"x" * 100 + path.read_bytes()[100:]),
    "text": lambda path: path.write_bytes(b"not a database\n" * 1000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another store": _sql("UPDATE meta SET value = 'other' WHERE name = 'owner'"),
    "another version": _sql("UPDATE meta SET value = '0' WHERE name = 'version'"),
    "a trigger": _sql("CREATE TRIGGER t AFTER INSERT ON shard BEGIN DELETE FROM shard; END"),
    "a view": _sql("CREATE VIEW v AS SELECT * FROM shard"),
    "a missing table": _sql("DROP TABLE part"),
    "a missing part": _sql("DELETE FROM part WHERE name = 'tokens'"),
    "a changed part": _sql("UPDATE part SET data = zeroblob(length(data)) WHERE name = 'tokens'"),
    "a text for a part": _sql("UPDATE part SET data = 'x' WHERE name = 'tokens'"),
    "ids that are no texts": _ids,
    "a text for the next row": _forged("UPDATE meta SET value = 'x' WHERE name = 'next'", _FORGOTTEN),
    "a next row too large": _forged(f"UPDATE meta SET value = '{10**30}' WHERE name = 'next'", _FORGOTTEN),
    "a next row that is taken": _forged("UPDATE meta SET value = '1' WHERE name = 'next'", _FORGOTTEN),
    "no text for a checksum": lambda path: path.with_name("index.crc32c").write_bytes(b"\xff\xfe"),
    "a number of records": _sql("UPDATE shard SET records = records + 1"),
    "a text for a number": _sql("UPDATE shard SET records = 'many' WHERE base = 1"),
    "no table of words": _sql("DROP TABLE text"),
    "empty words": _sql("UPDATE text_data SET block = zeroblob(length(block))"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_it_is_made_anew(name: str, store: Path, whole: Path) -> None:
    expected = answers(whole)
    DAMAGE[name](store / ".browse" / "index.sqlite")
    assert answers(store) == expected
    assert answers(store) == expected


def test_any_changed_byte_of_the_file_is_found(store: Path, whole: Path) -> None:
    expected, path = answers(whole), store / ".browse" / "index.sqlite"
    data = path.read_bytes()
    for place in range(17, len(data), len(data) // 9):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        assert answers(store) == expected, place


def test_damage_found_by_a_search_is_mended(store: Path, whole: Path) -> None:
    expected = answers(whole)
    path = store / ".browse" / "index.sqlite"
    with open_index(StoreReader(store)) as index:
        assert index.wait(60)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM text_data")
        index.positions(Filter(text="word7 word19"))
        assert index.wait(60) and index.state().problems == ()
        assert index.positions(Filter(text="word7 word19")).tolist() == expected[1]
        assert index.page(limit=100) == expected[0]


def test_a_file_that_is_damaged_again_and_again_is_given_up(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise builder.DamagedIndexError("x")

    monkeypatch.setattr(builder.IndexFile, "add_parts", damaged)
    shutil.rmtree(store / ".browse")
    with open_index(StoreReader(store)) as index:
        assert index.wait(60)
        (problem,) = index.state().problems
        assert "index.sqlite was damaged 3 times; check the disk" in problem


def test_a_damaged_shard_is_named_and_the_others_are_indexed(store: Path, whole: Path) -> None:
    shutil.rmtree(store / ".browse")
    (text,) = (path for path in (store / "shards" / "00000001" / "text").rglob("c*") if path.is_file())
    data = bytearray(text.read_bytes())
    data[20] ^= 1
    text.write_bytes(data)
    reader = StoreReader(store)
    with open_index(reader) as index:
        assert index.wait(60)
        state = index.state()
        assert (state.indexed, state.total, state.root_hash) == (21, 29, None)
        (problem,) = state.problems
        assert problem.startswith("shard 1: ") and "text" in problem
        assert {row["shard"] for row in index.page(Filter(unusable=False)).rows} == {0, 2, 3}
        assert index.page(Filter(text="word7 word19")).matching > 0
    shutil.rmtree(store / "shards")
    shutil.copytree(whole / "shards", store / "shards")
    assert answers(store) == answers(whole)  # the shard is read when it was repaired


def test_a_damaged_record_is_named_and_has_no_figure(store: Path) -> None:
    shutil.rmtree(store / ".browse")
    (values,) = (path for path in (store / "shards" / "00000001" / "attention").rglob("c*") if path.is_file())
    data = bytearray(values.read_bytes())
    data[20] ^= 1
    values.write_bytes(data)
    with open_index(StoreReader(store)) as index:
        assert index.wait(60)
        state = index.state()
        assert state.indexed == state.total == state.figured == 29
        assert state.problems and all(line.startswith("shard 1, record ") for line in state.problems)
        shown = index.page(Filter(ranges={"attention_mass": (None, None), "shard": (1, 1)})).matching
        assert shown == 0
