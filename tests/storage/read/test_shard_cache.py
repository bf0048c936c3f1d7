"""Tables of many shards, files of few, small columns of busy ones: always the same records, in bounded memory."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import alignkd.storage.read.shard_cache
import alignkd.storage.read.store
from alignkd.storage import CorruptStoreError, Manifest, Record, StoreReader

AssertSame = Callable[[Record, Record], None]
SHARDS, PER_SHARD = 3, 12


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def store(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
) -> Path:
    manifest = make_manifest(num_samples=SHARDS * PER_SHARD, shard_size=PER_SHARD, backend=request.param)
    return write_store(tmp_path_factory.mktemp("cache") / "store", manifest)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def first_reads(store: Path) -> list[Record]:
    """Each record by a reader that has read nothing before."""
    reader = StoreReader(store)
    return [StoreReader(store)[place] for place in range(len(reader))]


def test_held_columns_give_the_same_records(store: Path, assert_same: AssertSame) -> None:
    expected = first_reads(store)
    reader = StoreReader(store)
    for place in np.random.default_rng(0).permutation(4 * len(reader)) % len(reader):
        record = reader[int(place)]
        assert_same(record, expected[place])
        for array in (record.input_ids, record.labels, record.supervised_positions):
            array[:] = -1  # a reader's arrays are the caller's own
    held = [shard.held_bytes for shard in reader._shards._open.values()]
    assert len(held) == SHARDS and all((size > 0) == (reader.manifest.backend == "zarr") for size in held)


def test_held_columns_are_bounded(store: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame) -> None:
    expected, reader = first_reads(store), StoreReader(store)
    for place in range(len(reader)):
        reader[place]
    one = max(shard.held_bytes for shard in reader._shards._open.values())
    monkeypatch.setattr(alignkd.storage.read.shard_cache, "HELD_BYTES", one)
    reader = StoreReader(store)
    for place in range(len(reader)):
        assert_same(reader[place], expected[place])
        assert sum(shard.held_bytes for shard in reader._shards._open.values()) <= one


def test_damage_in_what_will_be_held_is_found(store: Path) -> None:
    reader = StoreReader(store)
    zarr = reader.manifest.backend == "zarr"
    path = store / "shards/00000000" / ("labels/c.0" if zarr else "00000000.tar")
    sound = path.read_bytes()
    at = 1 if zarr else sound.index(b".labels.npy") // 512 * 512 + 640
    path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
    try:
        with pytest.raises(CorruptStoreError, match="labels"):
            for place in range(PER_SHARD):
                reader[place]
    finally:
        path.write_bytes(sound)
    assert [reader[place].index for place in range(PER_SHARD)] == reader.dataset_index[:PER_SHARD].tolist()


def test_tables_stay_when_files_close(store: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame) -> None:
    expected = first_reads(store)
    monkeypatch.setattr(alignkd.storage.read.store, "MAX_OPEN_SHARDS", 1)
    reader, before = StoreReader(store), open_files()
    seen = [reader[place * PER_SHARD] for place in range(SHARDS)] and dict(reader._shards._known)
    for place in (*range(len(reader)), *range(0, len(reader), 5)):
        assert_same(reader[place], expected[place])
        assert open_files() - before <= 20
    assert dict(reader._shards._known) == seen and len(seen) == SHARDS


def test_tables_are_bounded(store: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame) -> None:
    expected = first_reads(store)
    monkeypatch.setattr(alignkd.storage.read.shard_cache, "TABLE_BYTES", 1)
    reader, before = StoreReader(store), open_files()
    for place in range(0, len(reader), 5):
        assert_same(reader[place], expected[place])
        assert len(reader._shards._known) == len(reader._shards._open) == 1
        assert open_files() - before <= 20


def test_a_file_that_was_cut_while_closed_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignkd.storage.read.store, "MAX_OPEN_SHARDS", 1)
    reader = StoreReader(store)
    reader[0], reader[PER_SHARD]
    name = "input_ids/c.0" if reader.manifest.backend == "zarr" else "00000000.tar"
    path = store / "shards/00000000" / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    try:
        with pytest.raises(CorruptStoreError, match=f"{path}.* {len(sound) - 1}"):
            reader[0]
    finally:
        path.write_bytes(sound)
    assert reader[0].index == reader.dataset_index[0]
