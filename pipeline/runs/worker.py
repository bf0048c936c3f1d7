"""One worker of a command that runs a teacher: signals, progress bar, and a status that other shells can read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tqdm import tqdm

from alignkd.pipeline.console.printing import say
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopSignals
from alignkd.teacher_dump.operation.workers import Worker


@contextmanager
def worker_control(command: str, worker: Worker, *, unit: str) -> Iterator[DumpControl]:
    """Control of one worker, with a progress bar if stderr is a terminal.

    Args:
        command: name of the bar.
        unit: what the bar counts.
    """
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
    number = os.environ.get("LOCAL_RANK", "")
    if teacher.device is not None or not number.isdecimal() or not torch.cuda.is_available():
        return teacher
    return teacher.model_copy(update={"device": f"cuda:{int(number) % torch.cuda.device_count()}"})
