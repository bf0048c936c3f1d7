"""The figures of `metrics.jsonl` for TensorBoard."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.output import BY_SOURCE, loss_names, validation_loss_names

FOLDER = "tensorboard"


class TensorBoardLog:
    """Event files in `OUTPUT/tensorboard`.

    Losses are under `loss/`, validation under `validation/`, sources under `source/NAME/`, the rest under `run/`.

    Args:
        output: folder of the run.
        done: optimiser steps done before; points that an earlier process wrote for later steps are hidden.
    """

    def __init__(self, output: Path, done: int) -> None:
        self._writer = SummaryWriter(output / FOLDER, purge_step=done + 1 if done else 0)

    def add(self, line: Metrics) -> None:
        """Add one point for every figure of the step."""
        step, losses = line["step"], loss_names(line)
        for name, value in line.items():
            if name not in ("step", BY_SOURCE):
                self._add(f"loss/{_shown(name)}" if name in losses else f"run/{name}", value, step)
        for source, figures in line.get(BY_SOURCE, {}).items():
            for name, value in figures.items():
                self._add(f"source/{source}/{name}", value, step)

    def _add(self, tag: str, value: float | None, step: int) -> None:
        if value is not None:
            self._writer.add_scalar(tag, float(value), step)

    def add_validation(self, line: Metrics) -> None:
        """Add one point for every loss of a validation."""
        for name in validation_loss_names(line):
            if (value := line[name]) is not None:
                self._writer.add_scalar(f"validation/{_shown(name)}", float(value), line["step"])

    def flush(self) -> None:
        """Wait until all points are written; called before a checkpoint, as earlier steps are not written again."""
        self._writer.flush()

    def close(self) -> None:
        """Write the remaining points and close the files."""
        self._writer.close()


def _shown(loss: str) -> str:
    return "total" if loss == "loss" else loss
