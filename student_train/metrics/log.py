"""Records the figures of each step: metrics.jsonl, TensorBoard, progress bar or log."""

from types import TracebackType
from typing import Self

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import writing
from alignkd.student_train.metrics.file import Metrics, MetricsLog
from alignkd.student_train.metrics.progress import Progress
from alignkd.student_train.metrics.tensorboard import TensorBoardLog
from alignkd.student_train.output import METRICS, VALIDATION


class RunLog:
    """The records of one run; only the first rank writes and shows anything.

    Args:
        config: settings of the run, its length in steps.
        ranks: this process among all.
        done: optimiser steps done before; lines of later steps are dropped.
        validated: the last validated step, from -1; lines of later validations are dropped. None without validation.

    Attributes:
        last: the line of the last step, {} before the first one.
    """

    def __init__(self, config: TrainConfig, ranks: Ranks, *, done: int, validated: int | None = None) -> None:
        self.last: Metrics = {}
        self._writes = ranks.is_first
        self._progress = Progress(done=done, steps=config.num_steps, log_every=config.log_every, show=self._writes)
        self._tensorboard = None
        self._metrics, self._validation = (MetricsLog(config.output / name) for name in (METRICS, VALIDATION))
        if not self._writes:
            return
        self.last = self._metrics.cut_back(done)
        if validated is not None:
            self._validation.cut_back(validated)
        if config.tensorboard:
            with writing(config.output):
                self._tensorboard = TensorBoardLog(config.output, done)

    def append(self, values: Metrics) -> None:
        """Record one step."""
        if not self._writes:
            return
        self.last = self._metrics.append(values)
        if self._tensorboard is not None:
            self._tensorboard.add(self.last)
        self._progress.update(self.last)

    def append_validation(self, values: Metrics, figure: str) -> None:
        """Record one validation, whose `figure` is shown."""
        if not self._writes:
            return
        line = self._validation.append(values)
        if self._tensorboard is not None:
            self._tensorboard.add_validation(line)
        self._progress.show_validation(line, figure)

    def flush(self) -> None:
        """Write everything to the disk; called before a checkpoint."""
        if self._tensorboard is not None:
            with writing(self._metrics.path.parent):
                self._tensorboard.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
