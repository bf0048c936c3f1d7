"""Records the figures of each step: metrics.jsonl, trackers, progress bar or log."""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.metrics.file import Metrics, MetricsLog
from alignkd.student_train.metrics.progress import Progress
from alignkd.student_train.metrics.tracker import Tracker
from alignkd.student_train.output import METRICS, VALIDATION


class RunLog:
    """The records of one run; only the first rank writes and shows anything.

    Args:
        config: settings of the run, its length in steps.
        ranks: this process among all.
        done: optimiser steps done before; lines of later steps are dropped.
        open_trackers: opens the trackers of the run, after the later lines are dropped.
        validated: the last validated step, from -1; lines of later validations are dropped. None without validation.

    Attributes:
        last: the line of the last step, {} before the first one.
    """

    def __init__(
        self,
        config: TrainConfig,
        ranks: Ranks,
        open_trackers: Callable[[], Sequence[Tracker]],
        *,
        done: int,
        validated: int | None = None,
    ) -> None:
        self.last: Metrics = {}
        self._writes = ranks.is_first
        self._progress = Progress(done=done, steps=config.num_steps, log_every=config.log_every, show=self._writes)
        self._trackers: Sequence[Tracker] = ()
        self._metrics, self._validation = (MetricsLog(config.output / name) for name in (METRICS, VALIDATION))
        if not self._writes:
            return
        self.last = self._metrics.cut_back(done)
        if validated is not None:
            self._validation.cut_back(validated)
        self._trackers = open_trackers()

    def append(self, values: Metrics) -> None:
        """Record one step."""
        if not self._writes:
            return
        self.last = self._metrics.append(values)
        for tracker in self._trackers:
            tracker.add(self.last)
        self._progress.update(self.last)

    def append_validation(self, values: Metrics, figure: str) -> None:
        """Record one validation, whose `figure` is shown."""
        if not self._writes:
            return
        line = self._validation.append(values)
        for tracker in self._trackers:
            tracker.add_validation(line)
        self._progress.show_validation(line, figure)

    def flush(self) -> None:
        """Write everything to the disk; called before a checkpoint."""
        for tracker in self._trackers:
            tracker.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        for tracker in self._trackers:
            tracker.close()
