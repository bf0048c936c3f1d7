"""An index comes back from its tar exactly as committed, or not at all."""

from pathlib import Path
from typing import Any

import pytest

from alignkd.storage import StoreError, verify_store
from alignkd.storage.layouts.tar.format import BLOCK, NPY_HEADER
from alignkd.storage.layouts.tar.rebuild import rebuild_index
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


def test_no_changed_byte_of_a_tar_gives_the_committed_index(
    tmp_path: Path, make_manifest: Any, write_store: Any
) -> None:
    """In headers and padding it is refused, in data the checksum differs; a sample of all bytes."""
    store = write_store(tmp_path / "s", make_manifest(backend="webdataset", num_samples=2, shard_size=2))
    tar = index_of(store, 0, "tar")
    sound, committed = tar.read_bytes(), index_of(store, 0).read_bytes()
    assert rebuild_index(tar) == committed
    refused = 0
    for place in range(0, len(sound), 97):
        tar.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        try:
            found = rebuild_index(tar)
        except StoreError as error:
            refused += 1
            assert str(error).startswith(f"{tar}") and len(str(error).splitlines()) == 1
        else:
            assert found != committed, place
    assert 100 < refused < len(sound) / 97


def test_bytes_after_the_end_of_a_tar_are_refused(tar_store: Path) -> None:
    tar = index_of(tar_store, 0, "tar")
    tar.write_bytes(tar.read_bytes() + bytes(512))
    with pytest.raises(
        StoreError, match=r"00000000\.tar: member __end__/counts\.json is followed by 512 bytes; restore"
    ):
        rebuild_index(tar)
