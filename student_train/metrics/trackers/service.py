"""A tracker as its process sees it, and what it is told about the run; loads no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from alignkd.student_train.metrics.trackers.kept import Kept
from alignkd.student_train.metrics.trackers.rows import Row


@dataclass(frozen=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about a run.

    Attributes:
        tracker: `wandb` or `trackio`.
        output: folder of the run, absolute.
        project: as `train.report_project`; None leaves it to the tracker.
        name, group: names of the folder and of the folder that contains it.
        tags: short words about the run.
        configuration: JSON-able, without credentials.
        settings: hash of the settings that decide what is learnt: another one is another run.
        done: optimiser steps done before this process.
        steps: length of the run in optimiser steps.
        scores: benchmark scores of the student, of a run that has ended; {} while it is going.
    """

    tracker: str
    output: Path
    project: str | None
    name: str
    group: str
    tags: tuple[str, ...]
    configuration: dict[str, Any]
    settings: str
    done: int
    steps: int
    scores: dict[str, float] = field(default_factory=dict)


class Service(Protocol):
    """The client of one tracker; every method may raise anything, and may take any time."""

    def open(self, run: TrackedRun, kept: Kept) -> int:
        """Begin or continue the run; return the number of the last row that the tracker has, -1 for none."""

    @property
    def place(self) -> str:
        """Where the run can be seen, for one line."""

    def send(self, row: Row) -> None:
        """Hand over one row; rows come in order."""

    def problems(self) -> list[str]:
        """What the client only warned of since the last call."""

    def close(self, *, complete: bool) -> None:
        """Wait until everything is delivered, for less than a minute; `complete`: the run did its last step.

        Raises:
            TimeoutError: it is not.
        """
