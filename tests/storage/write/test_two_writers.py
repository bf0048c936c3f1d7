"""Several writers on one store: every shard is committed once, whoever is first, and nobody harms the others."""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import alignkd.storage.write.publish
from alignkd.storage import (
    Manifest,
    Record,
    ShardWriter,
    StoreError,
    StoreReader,
    StoreWriter,
    open_writer,
    verify_store,
)
from alignkd.storage.files.exclusive import TEMPORARY_PREFIX, Lock, make_temporary_folder
from alignkd.storage.schema.commit_record import shard_folder

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., Record]
WriteStore = Callable[..., Path]
TreeBytes = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module", params=["zarr", "webdataset"])
def make_manifest(request: pytest.FixtureRequest, make_manifest: MakeManifest) -> MakeManifest:
    return partial(make_manifest, backend=request.param)


def fill(writer: StoreWriter, sink: ShardWriter, make_record: MakeRecord) -> None:
    for index in writer.planned_samples(sink.shard).tolist():
        sink.append(make_record(writer.manifest, index))


def test_of_two_writers_of_a_shard_one_commits(
    tmp_path: Path,
    make_manifest: MakeManifest,
    make_record: MakeRecord,
    write_store: WriteStore,
    tree_bytes: TreeBytes,
) -> None:
    manifest = make_manifest(num_samples=3, shard_size=3)
    alone = write_store(tmp_path / "alone", manifest)
    one, other = (open_writer(tmp_path / "store", manifest) for _ in range(2))
    with one.open_shard(0) as first, other.open_shard(0) as second:
        fill(one, first, make_record)
        fill(other, second, make_record)
        winner = first.commit()
        before = tree_bytes(shard_folder(tmp_path / "store", 0))
        assert second.commit() == winner
    assert tree_bytes(tmp_path / "store") == tree_bytes(alone)
    assert before == tree_bytes(shard_folder(alone, 0))
    with pytest.raises(StoreError, match=r"shard 0 of store .* is committed already"):
        other.open_shard(0)


def test_many_processes_share_a_plan(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, tree_bytes: TreeBytes
) -> None:
    """Three processes all try every shard at the same time."""
    manifest = make_manifest(num_samples=9, shard_size=3)
    alone = tree_bytes(write_store(tmp_path / "alone", manifest))
    for round_ in range(2):
        store = tmp_path / f"store-{round_}"
        start = time.time() + 0.3
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                code = 1
                try:
                    time.sleep(max(0.0, start - time.time()))
                    write_all(store, manifest, write_store)
                    code = 0
                finally:
                    os._exit(code)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
        assert tree_bytes(store) == alone


def write_all(store: Path, manifest: Manifest, write_store: WriteStore) -> None:
    for shard in range(manifest.num_shards):
        try:
            write_store(store, manifest, shards=[shard])
        except StoreError as error:
            assert "is committed already" in str(error)


def test_a_dead_writers_folder_is_replaced(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore
) -> None:
    """Renamed into place, not committed, and nobody holds its lock."""
    manifest = make_manifest(num_samples=3, shard_size=3)
    open_writer(tmp_path / "store", manifest)
    leftover = shard_folder(tmp_path / "store", 0)
    leftover.mkdir()
    (leftover / "half").write_text("a shard")
    store = write_store(tmp_path / "store", manifest)
    assert verify_store(store, deep=True).ok


def test_a_living_writers_folder_is_waited_for_not_replaced(
    tmp_path: Path, make_manifest: MakeManifest, write_store: WriteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignkd.storage.write.publish, "PATIENCE_SECONDS", 0.2)
    manifest = make_manifest(num_samples=3, shard_size=3)
    open_writer(tmp_path / "store", manifest)
    held = shard_folder(tmp_path / "store", 0)
    held.mkdir()
    (held / "half").write_text("a shard")
    lock = Lock.take(held)
    assert lock is not None
    with pytest.raises(StoreError, match="is locked by another process that does not commit; end it and run again"):
        write_store(tmp_path / "store", manifest)
    assert (held / "half").exists() and not list((tmp_path / "store").glob(f"{TEMPORARY_PREFIX}*"))
    lock.release()
    assert len(StoreReader(write_store(tmp_path / "store", manifest))) == 3


def test_opening_a_store_clears_the_dead_and_spares_the_living(tmp_path: Path, make_manifest: MakeManifest) -> None:
    manifest = make_manifest(num_samples=3, shard_size=3)
    store = tmp_path / "store"
    open_writer(store, manifest)
    living, lock = make_temporary_folder(store, "00000000")
    dead, dead_lock = make_temporary_folder(store, "00000001")
    dead_lock.release()
    (store / f"{TEMPORARY_PREFIX}00000002-1-abc.json").write_text("a draft")
    open_writer(store, manifest)
    assert list(store.glob(f"{TEMPORARY_PREFIX}*")) == [living] and not dead.exists()
    lock.release()


def test_samples_come_in_the_order_of_the_plan(
    tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord
) -> None:
    """The order decides the bytes, so that any writer makes the same shard."""
    manifest = make_manifest(num_samples=3, shard_size=3)
    writer = open_writer(tmp_path / "store", manifest)
    first, second, third = writer.planned_samples(0).tolist()
    with writer.open_shard(0) as sink:
        with pytest.raises(StoreError, match=f"index {second} appended, the plan's next is {first}"):
            sink.append(make_record(manifest, second))
        sink.append(make_record(manifest, first))
        with pytest.raises(
            StoreError, match=rf"sample 'x' \(index {first}\) is not pending in shard 0: not planned there"
        ):
            sink.quarantine(first, "x", "too late")
        with pytest.raises(StoreError, match=f"2 of 3 planned samples are neither .* the first has index {second}"):
            sink.commit()
        sink.quarantine(third, "x", "ahead of its turn")
        sink.append(make_record(manifest, second))
        with pytest.raises(StoreError, match=f"index {third} appended, the plan's next is none"):
            sink.append(make_record(manifest, third))
        commit = sink.commit()
        assert sink.commit() is commit
    assert commit.num_records == 2 and [sample.index for sample in commit.quarantined] == [third]


@pytest.mark.parametrize("shard", [-1, 1])
def test_shards_outside_the_plan_are_refused(tmp_path: Path, make_manifest: MakeManifest, shard: int) -> None:
    writer = open_writer(tmp_path / "store", make_manifest(num_samples=3, shard_size=3))
    with pytest.raises(StoreError, match=rf"shard is {shard}, the plan of store .* has 0..0"):
        writer.open_shard(shard)
