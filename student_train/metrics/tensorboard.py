"""The same figures as `metrics.jsonl`, for TensorBoard."""

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.objective.terms import TERMS

FOLDER = "tensorboard"


class TensorBoardLog:
    """Event files in `OUTPUT/tensorboard`: losses under `loss/`, everything else under `run/`.

    Args:
        output: folder of the run.
        done: optimiser steps done before; what an earlier process wrote of later ones is hidden.
    """

    def __init__(self, output: Path, done: int) -> None:
        self._writer = SummaryWriter(output / FOLDER, purge_step=done + 1 if done else None)

    def add(self, line: Metrics) -> None:
        """One point of every figure that the step has."""
        step = line["step"]
        for name, value in line.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(_tag(name), float(value), step)

    def flush(self) -> None:
        """Wait until all is written: before a checkpoint, whose earlier steps nobody writes again."""
        self._writer.flush()

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()


def _tag(name: str) -> str:
    if name == "loss":
        return "loss/total"
    return f"loss/{name}" if name in TERMS else f"run/{name}"
