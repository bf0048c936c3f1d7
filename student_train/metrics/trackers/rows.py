"""The lines of a run's metrics files as numbered rows, read while the run appends to them; loads no torch.

The number of a row follows from its step alone. So a tracker that tells its last row gets each row once, whatever was
computed again after a kill.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from alignkd.student_train.metrics.points import step_points, validation_points
from alignkd.student_train.output import METRICS, VALIDATION


@dataclass(frozen=True, kw_only=True)
class Row:
    """A step, or the validation after a step.

    Attributes:
        number: twice the step, and one more for a validation: rows are in the order in which they are written.
        points: name -> value.
        best: of a validation, `best_step` and `best` so far.
        of_step: the optimiser step, if it does not follow from the number.
    """

    number: int
    points: dict[str, float]
    best: tuple[int, float] | None = None
    of_step: int | None = None

    @property
    def step(self) -> int:
        """The optimiser step."""
        return self.number // 2 if self.of_step is None else self.of_step


class RowReader:
    """Reads both files from their beginning.

    The files are opened once: when a resumed run replaces them, the reader of the killed run still sees its own.

    Args:
        output: folder of the run; both files are there, if the run has them.
        done: optimiser steps done before this process: a validation of that state may come before any step.
    """

    def __init__(self, output: Path, done: int) -> None:
        self._steps, self._validations = (_Lines(output / name) for name in (METRICS, VALIDATION))
        self._waiting: list[Row] = []
        self._last_step = done

    def next_rows(self, limit: int) -> list[Row]:
        """Further complete rows in order, of about `limit` steps at most; [] if there are none yet.

        A validation waits for its step, because the files are not read at the same time.
        """
        steps = self._steps.next(limit)
        if steps:
            self._last_step = steps[-1]["step"]
        self._waiting += [_validation_row(line) for line in self._validations.next()]
        ready = [row for row in self._waiting if row.step <= self._last_step]
        self._waiting = [row for row in self._waiting if row.step > self._last_step]
        rows = [Row(number=2 * line["step"], points=step_points(line)) for line in steps] + ready
        return sorted(rows, key=lambda row: row.number)

    def close(self) -> None:
        """Close the files."""
        for lines in (self._steps, self._validations):
            lines.close()


class _Lines:
    """Complete lines of a file that grows; none if it does not exist."""

    def __init__(self, path: Path) -> None:
        self._rest = b""
        self._file: IO[bytes] | None = None
        if path.exists():
            self._file = path.open("rb")

    def next(self, limit: int | None = None) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while self._file is not None and (limit is None or len(found) < limit):
            self._rest += (piece := self._file.readline())
            if self._rest.endswith(b"\n"):
                found.append(json.loads(self._rest))
                self._rest = b""
            if not piece:
                break
        return found

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _validation_row(line: dict[str, Any]) -> Row:
    best = (line["best_step"], line["best"])
    return Row(
        number=2 * line["step"] + 1, points=validation_points(line), best=None if None in best else (best[0], best[1])
    )
