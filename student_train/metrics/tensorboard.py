"""The figures of `metrics.jsonl` for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from alignkd.student_train.errors import writing
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.metrics.points import step_points, validation_points

FOLDER = "tensorboard"


class TensorBoardLog:
    """Event files in `OUTPUT/tensorboard`, with the names of `points.py`.

    Args:
        output: folder of the run.
        done: optimiser steps done before; points that an earlier process wrote for later steps are hidden.

    Raises:
        TrainError: the folder cannot be written; `flush` raises it too.
    """

    def __init__(self, output: Path, done: int) -> None:
        self._output = output
        with writing(output):
            self._writer = SummaryWriter(output / FOLDER, purge_step=done + 1 if done else 0)

    def add(self, line: Metrics) -> None:
        """Add one point for every figure of the step."""
        self._add(step_points(line), line["step"])

    def add_validation(self, line: Metrics) -> None:
        """Add one point for every loss of a validation."""
        self._add(validation_points(line), line["step"])

    def _add(self, points: Mapping[str, float], step: int) -> None:
        for name, value in points.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Wait until all points are written; called before a checkpoint, as earlier steps are not written again."""
        with writing(self._output):
            self._writer.flush()

    def close(self) -> None:
        """Write the remaining points and close the files."""
        self._writer.close()
