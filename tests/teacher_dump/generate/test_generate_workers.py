"""Several workers of one generation, one that is killed, and the same bytes in the end."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from written_answers import bytes_of, entries_of

from alignkd.teacher_dump.generate.generate import generate_answers
from alignkd.teacher_dump.generate.job import GenerateJob
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import read_workers
from alignkd.teacher_dump.operation.stops import DumpStopped, DumpStopSignals
from alignkd.teacher_dump.operation.workers import Worker

MakeJob = Callable[..., GenerateJob]


@pytest.fixture
def many(questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Twelve questions; every shard has two."""
    return [{**entry, "id": f"{n}-{entry['id']}"} for n in range(3) for entry in questions]


def start_worker(job: GenerateJob, worker: Worker, *, halts_after: int | None = None) -> int:
    """One worker in a forked process, which does nothing more in the shard after so many: it waits to be killed."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)

            class Halts(DumpControl):
                def check(self) -> None:
                    in_the_middle = halts_after is not None and self.status.shards_written >= halts_after
                    while in_the_middle and self.status.in_hand:
                        signal.pause()
                    super().check()

            generate_answers(replace(job, control=Halts(worker, visible=True)))
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def reports(folder: Path) -> int:
    return len(list((folder / "shards").glob("0*.json")))


def test_two_workers_and_one_that_is_killed_give_the_bytes_of_one(
    make_job: MakeJob, many: list[dict[str, Any]], tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    settings: dict[str, Any] = {"batch": 1, "sampling": "sample"}
    generate_answers(make_job(many, output=tmp_path / "alone", **settings))
    shared = make_job(many, output=tmp_path / "shared", **settings)
    killed = start_worker(shared, Worker(rank=1, count=2), halts_after=1)
    wait_until(lambda: any(worker.in_hand for worker in read_workers(tmp_path / "shared")), "a shard half done")
    wait_until(lambda: reports(tmp_path / "shared") == 1, "a shard")
    os.kill(killed, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert [worker.state for worker in read_workers(tmp_path / "shared")] == ["dead"]
    workers = [start_worker(shared, Worker(rank=rank, count=2)) for rank in range(2)]
    assert [ended(child) for child in workers] == [0, 0]
    assert generate_answers(shared).shards_written == 0
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "alone")
    assert len(entries_of(tmp_path / "shared")) == 12
    assert not (tmp_path / "shared" / ".status").exists()


def test_ctrl_c_finishes_the_shard_and_a_second_one_abandons_it(
    make_job: MakeJob, many: list[dict[str, Any]], tmp_path: Path
) -> None:
    stops = DumpStopSignals()
    control = DumpControl(stops=stops, progress=lambda status: setattr(stops, "finishing", True))
    result = generate_answers(make_job(many, control=control))
    assert (result.shards_written, result.shards_left) == (1, 5)
    stops = DumpStopSignals()

    def give_up(status: object) -> None:
        stops.received, stops._giving_up = signal.SIGTERM, True

    with pytest.raises(DumpStopped):
        generate_answers(make_job(many, control=DumpControl(stops=stops, progress=give_up)))
    assert reports(tmp_path / "out") == 1
    assert generate_answers(make_job(many)).shards_written == 5
    assert [entry["id"] for entry in entries_of(tmp_path / "out")] == [entry["id"] for entry in many]
