"""Runs phase 1 of a configuration as one worker: signals, progress bar, and a status that other shells can read."""

import os
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpResult
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopSignals
from alignkd.teacher_dump.operation.workers import Worker, worker_of


@dataclass(frozen=True, kw_only=True)
class DumpEnd:
    """How a worker's run ended.

    Attributes:
        worker: rank and count of the worker.
        result: what it wrote.
        interrupted_by: the signal after which it started no other shard; 0 without a signal.
    """

    worker: Worker
    result: DumpResult
    interrupted_by: int


def run_dump(config: RunConfig, worker: str | None = None, *, retry_unusable: bool = False) -> DumpEnd:
    """Run phase 1.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        retry_unusable: also redo shards whose unusable samples can be read by now.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    which = worker_of(os.environ, worker)
    job = replace(config.dump_job(), retry_unusable=retry_unusable)
    # disable=None: no bar if stderr is not a terminal
    with DumpStopSignals() as stops, tqdm(desc=_bar_name(which), unit="sample", disable=None) as bar:

        def progress(status: WorkerStatus) -> None:
            bar.total = status.total
            bar.set_postfix_str(f"{status.errors} unusable" if status.errors else "", refresh=False)
            bar.update(status.samples - bar.n)

        def notice(text: str) -> None:
            with tqdm.external_write_mode():
                say(text)

        control = DumpControl(which, stops=stops, progress=progress, notice=notice, visible=True, reading=ReadingBar())
        result = dump(replace(job, teacher=_own_device(job.teacher), control=control))
        return DumpEnd(worker=which, result=result, interrupted_by=stops.received)


def _bar_name(worker: Worker) -> str:
    return "dump" if worker.count == 1 else f"dump {worker}"


def _own_device(teacher: TeacherConfig) -> TeacherConfig:
    """Give each worker that a launcher starts on this machine its own GPU, by the launcher's LOCAL_RANK."""
    number = os.environ.get("LOCAL_RANK", "")
    if teacher.device is not None or not number.isdecimal() or not torch.cuda.is_available():
        return teacher
    return teacher.model_copy(update={"device": f"cuda:{int(number) % torch.cuda.device_count()}"})
