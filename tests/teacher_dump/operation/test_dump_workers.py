"""Several workers of one dump: who takes which shard, two at once, one that dies, and the same bytes in the end."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkd.storage.files.local import LocalFiles
from alignkd.storage.places import load_manifest
from alignkd.storage.read.root_hash import root_hash
from alignkd.storage.remote.s3.store import S3Store
from alignkd.storage.remote.settings import settings_from_environment
from alignkd.storage.schema.commit_record import committed_shards
from alignkd.storage.write.bucket import BucketFolder
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import FOLDER, BucketPlace, FolderPlace, WorkerStatus, read_workers
from alignkd.teacher_dump.operation.workers import Worker, shards_to_write, worker_of
from alignkd.vlm.errors import InputError

MakeJob = Callable[..., DumpJob]
ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "40"}


@pytest.mark.parametrize(
    ("environment", "given", "expected"),
    [
        ({}, None, "0/1"),
        ({"RANK": "3", "WORLD_SIZE": "8"}, None, "3/8"),
        ({"RANK": "3", "WORLD_SIZE": "8"}, "0/2", "0/2"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "30"}, None, "2/4"),
        ({"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"}, None, "1/2"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "30", "RANK": "1", "WORLD_SIZE": "2"}, None, "1/2"),
    ],
)
def test_the_launcher_says_which_worker_this_is(environment: dict[str, str], given: str | None, expected: str) -> None:
    assert str(worker_of(environment, given)) == expected


@pytest.mark.parametrize("given", ["2/2", "1", "-1/2", "a/b", "0/0", "1/2/3"])
def test_a_worker_that_cannot_be_is_refused(given: str) -> None:
    with pytest.raises(InputError, match=f"worker is '{given}', expected RANK/COUNT"):
        worker_of({}, given)
    with pytest.raises(InputError, match=r"SLURM_ARRAY_TASK_COUNT in the environment: .*; or give --worker"):
        worker_of({**ARRAY, "SLURM_ARRAY_TASK_ID": "35"})


class Held:
    """Claims of one of several workers that share a set."""

    def __init__(self, held: set[int]) -> None:
        self.held = held

    def take(self, shard: int) -> bool:
        taken = shard not in self.held
        self.held.add(shard)
        return taken

    def release(self, shard: int) -> None:
        self.held.discard(shard)


@given(
    num_shards=st.integers(0, 30),
    count=st.integers(1, 5),
    order=st.lists(st.integers(0, 4), max_size=60),
    dead=st.sets(st.integers(0, 4)),
)
def test_every_shard_is_written_once_whoever_runs_when(
    num_shards: int, count: int, order: list[int], dead: set[int]
) -> None:
    """Workers take turns in any order, some end early; whoever is left finishes, and nobody writes a shard twice."""
    committed: list[int] = []
    held: set[int] = set()

    def work(rank: int) -> Iterator[int]:
        claims = Held(held)
        pending = lambda: sorted(set(range(num_shards)) - set(committed))  # noqa: E731
        for shard in shards_to_write(Worker(rank=rank, count=count), claims, pending, committed.__contains__):
            yield shard
            committed.append(shard)
            claims.release(shard)

    workers = [work(rank) for rank in range(count)]
    for rank in order:
        if rank < count and rank not in dead:
            next(workers[rank], None)
    for worker in workers:
        worker.close()
    held.clear()  # of those that ended in the middle of a shard
    for worker in (work(rank) for rank in range(count) if rank not in dead or rank == 0):
        list(worker)
    assert sorted(committed) == list(range(num_shards))


def test_own_shards_come_first_and_others_afterwards() -> None:
    done: list[int] = []
    pending = lambda: [shard for shard in range(7) if shard not in done]  # noqa: E731
    for shard in shards_to_write(Worker(rank=1, count=3), Held(set()), pending, done.__contains__):
        done.append(shard)
    assert done[:2] == [1, 4] and sorted(done) == list(range(7))


def many(golden: Path, times: int) -> list[dict[str, Any]]:
    """The golden samples again and again under other ids."""
    entries = json.loads((golden / "v1.json").read_text())
    return [{**entry, "id": f"{number}-{entry['id']}"} for number in range(times) for entry in entries]


def start_worker(job: DumpJob, worker: Worker, *, halts_after: int | None = None) -> int:
    """One worker in a forked process, which does nothing more after so many shards: it waits to be killed."""

    def progress(status: WorkerStatus) -> None:
        while halts_after is not None and status.shards_written >= halts_after:
            signal.pause()

    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)
            dump(replace(job, control=DumpControl(worker, progress=progress, visible=True)))
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def shards_of(store: Path) -> set[int]:
    """The committed shards; none of a store that is only begun."""
    return set(committed_shards(store)) if (store / "commits").exists() else set()


def hash_of(store: Path) -> str:
    return root_hash(LocalFiles(store), load_manifest(store))


def test_two_workers_at_once_one_killed_and_one_that_joins_give_the_bytes_of_one(
    make_job: MakeJob, golden: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    job = make_job(many(golden, 8), token_budget=1, sanity="off", logits={"kind": "topk"}, attention="float16")
    dump(job)
    alone = hash_of(tmp_path / "store")
    shared = replace(job, store=job.store.model_copy(update={"path": tmp_path / "shared"}))
    first = start_worker(shared, Worker(rank=0, count=2))
    second = start_worker(shared, Worker(rank=1, count=2), halts_after=1)
    wait_until(lambda: {s % 2 for s in shards_of(tmp_path / "shared")} == {0, 1}, "a shard of each worker")
    os.kill(second, signal.SIGKILL)
    third = start_worker(shared, Worker(rank=1, count=2))  # comes back
    assert ended(second) == -signal.SIGKILL and ended(first) == 0 and ended(third) == 0
    assert dump(shared).shards_written == 0  # nothing is left for a later run, whoever died
    assert hash_of(tmp_path / "shared") == alone
    assert not (tmp_path / "shared" / FOLDER).exists()


def test_what_a_dead_worker_left_is_finished_by_another_number_of_workers(
    make_job: MakeJob, golden: Path, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    job = make_job(many(golden, 6), token_budget=1, sanity="off")
    child = start_worker(job, Worker(rank=0, count=2), halts_after=2)
    wait_until(lambda: len(shards_of(job.store.path)) >= 2, "two shards")
    os.kill(child, signal.SIGKILL)
    ended(child)
    status = read_workers(job.store.path)
    assert [(worker.state, worker.pid) for worker in status] == [("dead", child)]
    left = 12 - len(committed_shards(job.store.path))
    control = DumpControl(visible=True)
    assert 0 < dump(replace(job, control=control)).shards_written == left
    whole = hash_of(job.store.path)
    assert control.status.samples == control.status.total == 2 * left
    unbroken = replace(job, store=job.store.model_copy(update={"path": tmp_path / "unbroken"}))
    dump(unbroken)
    assert hash_of(tmp_path / "unbroken") == whole and read_workers(job.store.path) == []


def test_a_shard_is_held_by_one_and_free_when_its_holder_dies(tmp_path: Path) -> None:
    one, two = FolderPlace(tmp_path / FOLDER, "one"), FolderPlace(tmp_path / FOLDER, "two")
    assert one.take(3) and not one.take(3) and not two.take(3) and two.take(4)
    one.release(3)
    assert two.take(3)
    child = os.fork()
    if not child:
        FolderPlace(tmp_path / FOLDER, "child").take(5)
        os.kill(os.getpid(), signal.SIGKILL)
    ended(child)
    assert one.take(5)
    two.write(WorkerStatus(worker="1/2"))
    two.close(complete=True)
    one.close(complete=True)
    assert not (tmp_path / FOLDER).exists()


def test_in_a_bucket_a_living_workers_word_holds_a_shard(bucket: Any) -> None:
    shared = BucketFolder(S3Store(bucket.url, settings_from_environment()), FOLDER)
    one, two = BucketPlace(shared, "worker-a"), BucketPlace(shared, "worker-b")
    one.write(WorkerStatus(worker="0/2", interval=one.interval))
    assert one.take(3) and not two.take(3) and two.take(4) and not one.take(4)
    assert {worker.shards for worker in read_workers(bucket.url)} == {(3,), (4,)}
    silent = WorkerStatus(worker="0/2", shards=(3,), heartbeat=time.time() - 1000)
    bucket.put(f"{FOLDER}/worker-a.json", silent.to_json())
    assert [worker.state for worker in read_workers(bucket.url)] == ["silent", "running"]
    assert two.take(3)
    two.close(complete=True)
    assert bucket.objects() == {}


def published_by_both(say: Callable[[], None], both: threading.Barrier) -> None:
    """Nobody speaks before both have looked, and nobody looks again before both have spoken."""
    both.wait()
    say()
    both.wait()


def test_two_that_begin_a_shard_in_a_bucket_at_the_same_moment_do_not_both_keep_it(
    bucket: Any, patience: float
) -> None:
    shared = BucketFolder(S3Store(bucket.url, settings_from_environment()), FOLDER)
    both = threading.Barrier(2, timeout=patience)  # a test that waits for ever says nothing
    places = [BucketPlace(shared, f"worker-{name}") for name in "ab"]
    for place in places:
        place._publish = partial(published_by_both, place._publish, both)  # type: ignore[method-assign]
    kept: list[bool] = [False, False]

    def take(number: int) -> None:
        kept[number] = places[number].take(7)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert kept == [True, False]


@given(
    st.builds(
        WorkerStatus,
        worker=st.just("1/2"),
        shards=st.lists(st.integers(0, 99), max_size=3).map(tuple),
        samples=st.integers(0, 2**40),
        rate=st.floats(0, 1e6),
        message=st.text(max_size=20),
    ),
    st.binary(max_size=30),
)
def test_a_status_comes_back_as_it_was_and_anything_else_is_none(status: WorkerStatus, noise: bytes) -> None:
    assert WorkerStatus.of_json(status.to_json()) == status
    assert WorkerStatus.of_json(noise) is None
    assert WorkerStatus.of_json(status.to_json()[: -len(noise) - 2]) is None
