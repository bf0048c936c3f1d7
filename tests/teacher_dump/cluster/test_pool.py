"""The assignment of shards to workers that come, die and refuse, without any process; the store is there already."""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import alignkd.teacher_dump.cluster.pool as pool
from alignkd.teacher_dump.cluster.fleet import Answer, Lost, Method
from alignkd.teacher_dump.cluster.member import Ended, Report
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopped
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError

SHARDS = 12
NOT_YET = object()


class Scripted:
    """A fleet of workers that are numbers: a cluster with room for `room` of them, whose fates `rng` decides.

    Attributes:
        written: the shards that were written, each time.
        most: the largest number of workers that existed at a time, waiting ones included.
        alone: of each call of `write`, the shard and how many others its worker had.
    """

    def __init__(self, seed: int = 0, *, room: int = 2, deaths: float = 0.0, deadly: int | None = None) -> None:
        self.rng, self.room, self.deaths, self.deadly = random.Random(seed), room, deaths, deadly
        self.pending: list[int] | None = list(range(SHARDS))
        self.ended = Ended(result=None, problem="", is_certain=False)
        self.workers: dict[int, list[int]] = {}
        self.placed: set[int] = set()
        self.calls: list[tuple[int, Method, int | None]] = []
        self.written: list[int] = []
        self.claimed: set[int] = set()
        self.most = 0
        self.alone: list[tuple[int, int]] = []
        self.stopped: set[int] = set()

    def needs(self) -> str:
        return "1 GPU"

    def start(self, worker: int) -> None:
        assert worker not in self.workers
        self.workers[worker] = []
        self.most = max(self.most, len(self.workers))
        self.call(worker, "host")

    def call(self, worker: int, method: Method, argument: int | None = None) -> None:
        assert worker in self.workers, f"{method} of worker {worker}, which was ended"
        if method == "write":
            assert argument is not None
            self.alone.append((argument, len(self.workers[worker])))
            self.workers[worker].append(argument)
        self.calls.append((worker, method, argument))

    def kill(self, worker: int) -> None:
        self.workers.pop(worker, None)
        self.placed.discard(worker)
        self.calls = [call for call in self.calls if call[0] != worker]

    def answers(self, seconds: float) -> list[Answer]:
        self.rng.shuffle(self.calls)
        for call in self.calls:
            value = self._value(*call)
            if value is not NOT_YET:
                self.calls.remove(call)
                return [Answer(worker=call[0], method=call[1], argument=call[2], value=value)]
        return []

    def _value(self, worker: int, method: Method, argument: int | None) -> Any:
        if method == "host":
            if worker not in self.placed and len(self.placed) >= self.room:
                return NOT_YET  # no machine has room
            self.placed.add(worker)
        if self.rng.random() < self.deaths or (method == "write" and self.workers[worker][0] == self.deadly):
            return Lost(cause="was killed", is_of_node=self.rng.random() < 0.5 and self.deadly is None)
        if method == "host":
            return "machine"
        if method == "open":
            return self.pending
        if method == "finish":
            return self.ended
        if method == "report":
            return Report(status=WorkerStatus(worker="cluster 0", in_hand=99), notices=("on a GPU",))
        if method == "stop":
            self.stopped.add(worker)
            return "stopped"
        assert argument is not None
        if self.workers[worker][0] != argument:
            return "left" if worker in self.stopped else NOT_YET
        self.workers[worker].remove(argument)
        if argument in self.claimed:
            self.claimed.remove(argument)
            return "claimed"
        self.written.append(argument)
        return "written"


@pytest.fixture(scope="module")
def job(golden: Path, golden_images: Path, tmp_path_factory: pytest.TempPathFactory) -> DumpJob:
    """A dump that is complete: what the pool reads of the store at its begin and at its end."""
    folder = tmp_path_factory.mktemp("complete")
    entries = json.loads((golden / "v1.json").read_text())
    many = [{**entry, "id": f"{number}-{entry['id']}"} for number in range(3) for entry in entries]
    (folder / "data.json").write_text(json.dumps(many))
    made = DumpJob(
        data=(DataSet(path=folder / "data.json", images=golden_images),),
        template="v1",
        max_tokens=2048,
        teacher=TeacherConfig(checkpoint=str(golden / "teacher"), vision_config=golden / "clip", sanity="off"),
        store=StoreConfig(path=folder / "store", shard_size=1, logits={"kind": "topk"}),
    )
    dump(made)
    return made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pool, "CLAIMED_SECONDS", 0.0)
    monkeypatch.setattr(pool, "REPORT_SECONDS", 0.0)
    yield


@pytest.fixture(scope="module")
def finished(job: DumpJob) -> Ended:
    """How a worker ends that was told to."""
    return Ended(result=dump(job))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**30),
    room=st.integers(1, 5),
    deaths=st.sampled_from([0.0, 0.02, 0.1]),
    limit=st.sampled_from([None, 1, 3]),
    claimed=st.sets(st.integers(0, SHARDS - 1)),
)
def test_every_shard_is_written_whichever_workers_die_when(
    job: DumpJob, finished: Ended, seed: int, room: int, deaths: float, limit: int | None, claimed: set[int]
) -> None:
    fleet = Scripted(seed, room=room, deaths=deaths)
    fleet.ended, fleet.claimed = finished, claimed
    notices: list[str] = []
    shown: list[WorkerStatus] = []
    control = DumpControl(notice=notices.append, progress=shown.append)
    try:
        result = pool.dump_on(fleet, replace(job, control=control), max_workers=limit)
    except InputError as error:
        assert deaths and "at the last of" in str(error) and "was killed" in str(error)
        assert fleet.workers == {}
        return
    assert set(fleet.written) == set(range(SHARDS)) and result.shards_written == result.written == SHARDS
    assert len(fleet.written) == SHARDS  # a shard is written again only where its worker died before it answered
    assert fleet.workers == {} and fleet.most <= (limit or SHARDS)
    assert shown[-1].samples == shown[-1].total == SHARDS
    assert all(status.samples <= SHARDS for status in shown)
    assert notices.count("on a GPU") <= 1


def test_the_number_of_workers_doubles_while_there_is_room(job: DumpJob, finished: Ended) -> None:
    fleet = Scripted(room=3)
    fleet.ended = finished
    pool.dump_on(fleet, job)
    assert fleet.most <= 6  # three that run, and no more requests than those


def test_a_shard_that_ends_its_worker_again_and_again_is_named(job: DumpJob, finished: Ended) -> None:
    fleet = Scripted(deadly=7)
    fleet.ended = finished
    notices: list[str] = []
    with pytest.raises(InputError, match="shard 7: the worker on machine was killed, at the last of 4 attempts; lower"):
        pool.dump_on(fleet, replace(job, control=DumpControl(notice=notices.append)))
    assert len([line for line in notices if line.startswith("shard 7: the worker")]) == pool.MAX_ATTEMPTS - 1
    again = [others for shard, others in fleet.alone if shard == 7][1:]
    assert again == [0] * (pool.MAX_ATTEMPTS - 1)  # so that no other shard can be the cause
    assert fleet.workers == {}


def test_a_wrong_setting_ends_the_dump_at_once_and_a_lack_of_memory_after_some_workers(
    job: DumpJob, finished: Ended
) -> None:
    fleet = Scripted()
    fleet.pending, fleet.ended = None, Ended(problem="no such checkpoint", is_certain=True)
    with pytest.raises(InputError, match=r"^no such checkpoint$"):
        pool.dump_on(fleet, job)
    fleet.ended = Ended(problem="out of memory")
    said = "loading the teacher: the worker on machine ended: out of memory, at the last of 4 attempts"
    with pytest.raises(InputError, match=said):
        pool.dump_on(fleet, job)
    assert fleet.workers == {}


def test_a_complete_store_needs_no_shard(job: DumpJob, finished: Ended) -> None:
    fleet = Scripted()
    fleet.pending, fleet.ended = None, finished
    result = pool.dump_on(fleet, job)
    assert (result.shards_written, result.num_records, fleet.written) == (0, SHARDS, [])


@pytest.mark.parametrize("begun", [0, 3])
def test_the_first_ctrl_c_finishes_the_shards_that_are_being_written(job: DumpJob, finished: Ended, begun: int) -> None:
    fleet = Scripted(seed=begun)
    fleet.ended = finished
    control = DumpControl()

    def look(status: WorkerStatus) -> None:
        if len(fleet.written) >= begun and not control.stops.finishing:
            assert control.stops.announce is not None
            said = control.stops.announce()
            assert ("Ctrl-C again abandons" in said) == bool(any(fleet.workers.values())), said
            control.stops.finishing, control.stops.received = True, 2

    control = DumpControl(progress=look)
    given = replace(job, control=control)
    if not begun:
        with pytest.raises(DumpStopped):
            pool.dump_on(fleet, given)
    else:
        result = pool.dump_on(fleet, given)
        assert begun <= result.shards_written == len(fleet.written) < SHARDS
    assert fleet.workers == {} and control.stops.announce is None


def test_nobody_waits_in_silence_for_a_machine_that_is_not_there(
    job: DumpJob, finished: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "NO_ROOM_SECONDS", 0.0)
    fleet = Scripted(room=0)
    fleet.ended = finished
    notices: list[str] = []

    def notice(text: str) -> None:
        notices.append(text)
        fleet.room = 1

    pool.dump_on(fleet, replace(job, control=DumpControl(notice=notice)))
    assert any(line.startswith("no machine of the cluster has 1 GPU free; waiting for one") for line in notices)
