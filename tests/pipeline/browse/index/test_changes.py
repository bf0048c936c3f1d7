"""An index of a store that grew, was rewritten or is being written equals a new one, and only new shards are read."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.browse.index import builder
from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.index.store_index import StoreIndex, open_index
from alignkd.storage.read.shard import OpenShard
from alignkd.storage.read.store import StoreReader
from alignkd.storage.schema.sources import Addition, StoredSource

BACKENDS = ["zarr", "webdataset"]


@pytest.fixture
def read_shards(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[int]]:
    """read_shards(): the shards of which the first pass was made since the last call."""
    read: list[int] = []
    original = builder.read_rows

    def noted(shard: OpenShard, manifest: Any) -> Any:
        read.append(shard.commit.shard)
        return original(shard, manifest)

    def taken() -> list[int]:
        found = list(read)
        read.clear()
        return found

    monkeypatch.setattr(builder, "read_rows", noted)
    return taken


def answers(index: StoreIndex) -> Any:
    """What an index answers."""
    assert index.wait(60)
    assert index.state().problems == ()
    numbers = [column.name for column in index.columns() if column.kind != "text" and column.available]
    return (
        index.page(limit=1000),
        [index.histogram(Filter(), name) for name in numbers],
        [index.positions(Filter(text=text)).tolist() for text in ("this", "aaa*", "これ", "new", "word*")],
        index.sources(),
        index.reasons(),
        index.state().root_hash,
    )


def opened(store: Path) -> Any:
    with open_index(StoreReader(store, allow_incomplete=True)) as index:
        return answers(index)


def made_anew(store: Path, tmp_path: Path) -> Any:
    copy = tmp_path / "copy" / store.name
    shutil.copytree(store, copy, ignore=shutil.ignore_patterns(".browse"))
    found = opened(copy)
    shutil.rmtree(copy)
    return found


def rewrite(store: Path, shard: int, write_store: Any, manifest: Any, record_of: Any) -> None:
    """Do a shard again, with other records."""
    (store / "commits" / f"{shard:08d}.json").unlink()
    shutil.rmtree(store / "shards" / f"{shard:08d}")
    write_store(store, manifest, shards=[shard], record_of=record_of)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_that_is_being_written(
    backend: str, tmp_path: Path, make_manifest: Any, write_store: Any, read_shards: Any
) -> None:
    """A shard with a lower number moves the positions of those after it."""
    manifest, store = make_manifest(backend=backend, num_samples=14), tmp_path / "store"
    for shard in (2, 0, 3, 1):
        write_store(store, manifest, shards=[shard], quarantine=(4, 7))
        found = opened(store)
        assert read_shards() == [shard]
        assert found == made_anew(store, tmp_path)
        read_shards()
    assert found[0].matching == 14
    assert found[-1] == StoreReader(store).root_hash()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_shard_that_was_done_again(
    backend: str, tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, read_shards: Any
) -> None:
    manifest, store = make_manifest(backend=backend), tmp_path / "store"
    write_store(store, manifest)
    before = opened(store)
    read_shards()

    def other(index: int) -> Any:
        return make_record(
            manifest, index, conversations=[{"from": "gpt", "value": f"new word{index}"}], id=f"new{index}"
        )

    rewrite(store, 1, write_store, manifest, other)
    after = opened(store)
    assert read_shards() == [1]
    assert after != before and after == made_anew(store, tmp_path)


def test_a_shard_that_is_gone(tmp_path: Path, make_manifest: Any, write_store: Any, read_shards: Any) -> None:
    store = write_store(tmp_path / "store", make_manifest())
    opened(store)
    (store / "commits" / "00000001.json").unlink()
    read_shards()
    assert opened(store) == made_anew(store, tmp_path)
    assert set(read_shards()) <= {0, 2}  # those of the copy
    write_store(store, make_manifest())
    assert opened(store)[0].matching == 10
    assert read_shards() == [1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_store_that_grew(
    backend: str, tmp_path: Path, make_manifest: Any, write_store: Any, read_shards: Any
) -> None:
    def source(name: str, number: int) -> StoredSource:
        return StoredSource(name=name, num_samples=number)

    manifest, store = make_manifest(backend=backend, sources=(source("one", 10),)), tmp_path / "store"
    write_store(store, manifest)
    opened(store)
    read_shards()
    more = Addition(added="2030-01-01T00:00:00Z", sources=(source("two", 5),), num_samples=5)
    write_store(store, manifest.changed(additions=(more,)))
    found = opened(store)
    assert read_shards() == [3, 4]
    assert found == made_anew(store, tmp_path)
    assert [(group.name, group.count) for group in found[3]] == [("one", 10), ("two", 5)]


def test_another_store_at_the_same_place(
    tmp_path: Path, make_manifest: Any, write_store: Any, read_shards: Any
) -> None:
    store = write_store(tmp_path / "store", make_manifest())
    opened(store)
    for name in ("shards", "commits", "manifest.json"):
        path = store / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_store(store, make_manifest(seed=2))  # a writer takes a folder that holds only an index
    read_shards()
    assert opened(store) == made_anew(store, tmp_path)
    assert sorted(read_shards()) == [0, 0, 1, 1, 2, 2]


def test_many_rewritten_shards_do_not_fill_the_file(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inverted list keeps the words of dropped shards: then the file is made anew."""
    monkeypatch.setattr(builder, "MAX_DROPPED", 4)
    manifest, store = make_manifest(num_samples=4), tmp_path / "store"
    write_store(store, manifest)
    made = set()
    for turn in range(4):
        found = opened(store)
        assert found == made_anew(store, tmp_path)
        with closing(sqlite3.connect(store / ".browse" / "index.sqlite")) as file:
            made.update(file.execute("SELECT value FROM meta WHERE name = 'id'").fetchall())
        said = [{"from": "gpt", "value": f"word{turn}"}]
        rewrite(
            store, 0, write_store, manifest, lambda index, said=said: make_record(manifest, index, conversations=said)
        )
    assert len(made) > 1


def test_an_older_and_a_newer_view_of_a_store_share_the_index(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest, store = make_manifest(), tmp_path / "store"
    write_store(store, manifest, shards=[0, 2])
    old = StoreReader(store, allow_incomplete=True)
    with open_index(old) as first:
        expected = answers(first)
        write_store(store, manifest)
        assert not first.is_current()
        with open_index(StoreReader(store)) as second:
            assert answers(second)[0].matching == 10
            assert second.is_current()
            assert answers(first) == expected
        with open_index(old) as again:  # it does not drop what the newer one added
            assert answers(again) == expected
    assert opened(store) == made_anew(store, tmp_path)


def test_a_shard_that_is_done_again_while_it_is_looked_at(
    tmp_path: Path, make_manifest: Any, make_record: Any, write_store: Any
) -> None:
    manifest, store = make_manifest(), tmp_path / "store"
    write_store(store, manifest)
    old = StoreReader(store)
    opened(store)
    rewrite(store, 1, write_store, manifest, lambda index: make_record(manifest, index, id="other"))
    new = opened(store)
    with open_index(old) as index:
        assert index.wait(60)
        (problem,) = index.state().problems
        assert "shard 1: was done again since this process opened the store; open the store again" in problem
        assert index.state().indexed == 6
    assert opened(store) == new
