"""Runs phase 1 of a configuration as one worker: signals, progress bar, and what other shells can see of it."""

import os
from dataclasses import dataclass, replace

import click
import torch
from tqdm import tqdm

from alignkd.pipeline.config.run_config import RunConfig
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
        worker: which it was.
        interrupted_by: the signal after which it did not begin another shard, 0 if none came.
    """

    worker: Worker
    result: DumpResult
    interrupted_by: int


def run_dump(config: RunConfig, worker: str | None = None, *, retry_unusable: bool = False) -> DumpEnd:
    """Phase 1.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or is alone.
        retry_unusable: also do shards again whose unusable samples can be read by now.

    Raises:
        DumpStopped: a signal made it give up the shard in hand.
    """
    which = worker_of(os.environ, worker)
    job = replace(config.dump_job(), retry_unusable=retry_unusable)
    # disable=None: quiet when stderr is not a terminal
    with DumpStopSignals() as stops, tqdm(desc=_bar_name(which), unit="sample", disable=None) as bar:

        def progress(status: WorkerStatus) -> None:
            bar.total = status.total
            bar.set_postfix_str(f"{status.errors} unusable" if status.errors else "", refresh=False)
            bar.update(status.samples - bar.n)

        def notice(text: str) -> None:
            with tqdm.external_write_mode():
                click.echo(f"alignkd: {text}", err=True)

        control = DumpControl(which, stops=stops, progress=progress, notice=notice, visible=True)
        result = dump(replace(job, teacher=_own_device(job.teacher), control=control))
        return DumpEnd(worker=which, result=result, interrupted_by=stops.received)


def _bar_name(worker: Worker) -> str:
    return "dump" if worker.count == 1 else f"dump {worker}"


def _own_device(teacher: TeacherConfig) -> TeacherConfig:
    """A launcher that starts several workers on a machine numbers them: each takes a GPU of its own."""
    number = os.environ.get("LOCAL_RANK", "")
    if teacher.device is not None or not number.isdecimal() or not torch.cuda.is_available():
        return teacher
    return teacher.model_copy(update={"device": f"cuda:{int(number) % torch.cuda.device_count()}"})
