"""One worker of a command that runs a teacher: signals, progress bar, and a status that other shells can read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from tqdm import tqdm

from alignkd.pipeline.console.printing import say
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopSignals
from alignkd.teacher_dump.operation.workers import Worker, worker_of
from alignkd.teacher_dump.settings.teacher import TeacherConfig

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class WorkerEnd(Generic[Result]):
    """How a worker's run ended.

    Attributes:
        worker: rank and count of the worker.
        result: what it wrote.
        interrupted_by: the signal after which it started no other shard; 0 without a signal.
    """

    worker: Worker
    result: Result
    interrupted_by: int


def run_as_worker(
    command: str, worker: str | None, *, unit: str, run: Callable[[DumpControl], Result]
) -> WorkerEnd[Result]:
    """Call `run` with the control of one worker, and a progress bar if stderr is a terminal.

    Args:
        command: name of the bar.
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        unit: what the bar counts.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    which = worker_of(os.environ, worker)
    with _control(command, which, unit) as control:
        result = run(control)
        return WorkerEnd(worker=which, result=result, interrupted_by=control.stops.received)


@contextmanager
def _control(command: str, worker: Worker, unit: str) -> Iterator[DumpControl]:
    name = command if worker.count == 1 else f"{command} {worker}"
    # disable=None: no bar if stderr is not a terminal
    with DumpStopSignals() as stops, tqdm(desc=name, unit=unit, disable=None) as bar:

        def progress(status: WorkerStatus) -> None:
            bar.total = status.total
            bar.set_postfix_str(f"{status.errors} unusable" if status.errors else "", refresh=False)
            bar.update(status.samples - bar.n)

        def notice(text: str) -> None:
            with tqdm.external_write_mode():
                say(text)

        yield DumpControl(worker, stops=stops, progress=progress, notice=notice, visible=True, reading=ReadingBar())


def own_device(teacher: TeacherConfig) -> TeacherConfig:
    """Give each worker that a launcher starts on this machine its own GPU, by the launcher's LOCAL_RANK."""
    return teacher.model_copy(update={"device": device_of_worker(teacher.device)})


def device_of_worker(device: str | None) -> str | None:
    """The device that was chosen, else the GPU of this worker; None without a launcher, and without a GPU."""
    number = os.environ.get("LOCAL_RANK", "")
    if device is not None or not number.isdecimal() or not torch.cuda.is_available():
        return device
    return f"cuda:{int(number) % torch.cuda.device_count()}"
