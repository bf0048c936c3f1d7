"""The reader: lengths without payload, look-ups, bounded open files, forks, threads and pickles."""

import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import alignkd.storage.read.store
from alignkd.storage import Manifest, Record, StoreError, StoreReader

MakeManifest = Callable[..., Manifest]
AssertSame = Callable[[Record, Record], None]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def make_manifest(request: pytest.FixtureRequest, make_manifest: MakeManifest) -> MakeManifest:
    return partial(make_manifest, backend=request.param)


def test_index_arrays_agree_with_the_records(small_store: Path) -> None:
    reader = StoreReader(small_store)
    records = [reader[place] for place in range(len(reader))]
    assert len(records) == 8
    assert reader.num_tokens.tolist() == [len(record.input_ids) for record in records]
    assert reader.sequence_lengths.tolist() == [record.sequence_length for record in records]
    assert reader.num_queries.tolist() == [len(record.tqv_query_positions) for record in records]
    assert reader.num_supervised.tolist() == [len(record.supervised_positions) for record in records]
    assert reader.has_image.tolist() == [record.has_image for record in records]
    assert reader.dataset_index.tolist() == [record.index for record in records]
    assert list(reader.keys) == [record.key for record in records]
    assert list(reader.ids) == [record.id for record in records]


def test_index_arrays_do_not_touch_the_payload(small_store: Path) -> None:
    reader = StoreReader(small_store)
    for path in small_store.glob("shards/*/attention/c.*"):
        path.write_bytes(bytes(path.stat().st_size))
    assert reader.num_tokens.sum() > 0 and len(reader.keys) == 8


def test_find_by_key_id_and_index(small_store: Path) -> None:
    reader = StoreReader(small_store)
    record = reader[5]
    assert reader.find(key=record.key) == [5] == reader.find(index=record.index)
    # samples 1 and 8 have the same id, "sample-1"
    assert sorted(reader[place].index for place in reader.find(id="sample-1")) == [1, 8]
    assert reader.find(id="nobody") == [] == reader.find(index=4)


@pytest.mark.parametrize("wanted", [{}, {"id": "a", "index": 1}])
def test_find_takes_exactly_one(small_store: Path, wanted: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="give exactly one"):
        StoreReader(small_store).find(**wanted)  # type: ignore[arg-type]


@pytest.mark.parametrize("position", [-9, 8])
def test_positions_outside_are_index_errors(small_store: Path, position: int) -> None:
    with pytest.raises(IndexError, match=f"position {position} of a store with 8 records"):
        StoreReader(small_store)[position]


def test_records_stay_valid_and_writable_after_later_reads(small_store: Path) -> None:
    """Arrays must not be views of a buffer that the next read overwrites."""
    reader = StoreReader(small_store)
    records = [reader[place] for place in range(8)]
    copies = [record.input_ids.copy() for record in records]
    for place in range(8):
        reader[place].input_ids[:] = 0
    assert all((record.input_ids == copy).all() for record, copy in zip(records, copies, strict=True))


def test_open_files_are_bounded(
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alignkd.storage.read.store, "MAX_OPEN_SHARDS", 2)
    reader = StoreReader(write_store(tmp_path / "store", make_manifest(num_samples=16, shard_size=2)))
    before = open_files()
    for place in range(len(reader)):
        reader[place]
        assert open_files() - before <= 2 * 20
    assert reader.num_tokens.sum() > 0
    assert open_files() - before <= 2 * 20
    del reader
    assert open_files() == before


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_pickled_reader_reads_on(small_store: Path, assert_same: AssertSame) -> None:
    reader = StoreReader(small_store)
    expected = reader[3]
    assert_same(pickle.loads(pickle.dumps(reader))[3], expected)


def test_threads_share_a_reader(small_store: Path, monkeypatch: pytest.MonkeyPatch, assert_same: AssertSame) -> None:
    monkeypatch.setattr(alignkd.storage.read.store, "MAX_OPEN_SHARDS", 1)
    reader = StoreReader(small_store)
    expected = [reader[place] for place in range(8)]
    places = np.random.default_rng(0).integers(0, 8, 400).tolist()
    with ThreadPoolExecutor(8) as pool:
        for place, record in zip(places, pool.map(reader.__getitem__, places), strict=True):
            assert_same(record, expected[place])


def test_forked_workers_share_a_reader(small_store: Path, patience: float) -> None:
    """As in a data loader: files opened before the fork, parent and children reading at once."""
    reader = StoreReader(small_store)
    expected = [reader[place].input_ids.tolist() for place in range(8)]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def work() -> None:
        queue.put([reader[place].input_ids.tolist() for place in list(range(8)) * 5])

    workers = [context.Process(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    results = [queue.get() for _ in workers] + [[reader[p].input_ids.tolist() for p in list(range(8)) * 5]]
    for worker in workers:
        worker.join(timeout=patience)
        assert worker.exitcode == 0
    assert all(result == expected * 5 for result in results)


def test_an_incomplete_store_is_refused_unless_allowed(
    tmp_path: Path, make_manifest: Callable[..., Manifest], write_store: Callable[..., Path]
) -> None:
    path = write_store(tmp_path / "store", make_manifest(), shards=[0, 2])
    with pytest.raises(StoreError, match=r"store .*: 2 of 3 shards committed; run `alignkd dump` again"):
        StoreReader(path)
    assert len(StoreReader(path, allow_incomplete=True)) == 6


def test_a_store_of_nothing_but_quarantined_samples_is_empty(
    tmp_path: Path, make_manifest: Callable[..., Manifest], write_store: Callable[..., Path]
) -> None:
    reader = StoreReader(write_store(tmp_path / "store", make_manifest(num_samples=3), quarantine=range(3)))
    assert len(reader) == 0 == len(reader.num_tokens) == len(reader.ids) == len(reader.find(index=1))
    assert [sample.index for sample in reader.quarantined] == [0, 1, 2]


def test_no_store_is_one_clean_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"manifest.json: No such file or directory; is this the folder of a store\?"):
        StoreReader(tmp_path)
