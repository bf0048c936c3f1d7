"""An index comes back from its tar exactly as committed, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreError, verify_store
from alignkd.storage.layouts.tar.format import BLOCK, NPY_HEADER
from alignkd.storage.tools.index_rebuild import rebuild_indexes


@pytest.fixture
def tar_store(tmp_path: Path, make_manifest: Any, write_store: Any) -> Path:
    return write_store(tmp_path / "tars", make_manifest(backend="webdataset"))


def index_of(store: Path, shard: int, suffix: str = "idx") -> Path:
    return store / "shards" / f"{shard:08d}" / f"{shard:08d}.{suffix}"


def test_missing_and_damaged_indexes_come_back(tar_store: Path) -> None:
    assert [state.state for state in rebuild_indexes(tar_store, write=True)] == ["sound"] * 3
    before = [index_of(tar_store, shard).read_bytes() for shard in range(3)]
    index_of(tar_store, 0).unlink()
    index_of(tar_store, 2).write_bytes(before[2][:100] + b"\xff" + before[2][101:])
    found = rebuild_indexes(tar_store, write=False)
    assert [state.state for state in found] == ["repairable", "sound", "repairable"]
    assert "is missing" in found[0].message and not index_of(tar_store, 0).exists()
    assert [state.state for state in rebuild_indexes(tar_store, write=True)] == ["rebuilt", "sound", "rebuilt"]
    assert [index_of(tar_store, shard).read_bytes() for shard in range(3)] == before
    assert verify_store(tar_store, deep=True).ok and not list(tar_store.glob(".tmp-*"))


def test_the_index_of_an_altered_tar_is_not_written(tar_store: Path) -> None:
    index_of(tar_store, 1).unlink()
    tar = index_of(tar_store, 1, "tar")
    data = bytearray(tar.read_bytes())
    place = data.index(b"input_ids.npy") + BLOCK + NPY_HEADER + 3  # in the data of an array: the tar still reads
    data[place] ^= 1
    tar.write_bytes(data)
    states = rebuild_indexes(tar_store, write=True)
    assert [state.state for state in states] == ["sound", "lost", "sound"]
    assert "the tar is damaged" in states[1].message and not index_of(tar_store, 1).exists()
    tar.write_bytes(data[:2048])
    assert rebuild_indexes(tar_store, write=True)[1].state == "lost"


def test_only_where_there_are_indexes(small_store: Path) -> None:
    with pytest.raises(StoreError, match="backend is zarr, only webdataset stores have an index file"):
        rebuild_indexes(small_store, write=False)
    with pytest.raises(StoreError, match="copy the store to one first"):
        rebuild_indexes("s3://bucket/store", write=False)
