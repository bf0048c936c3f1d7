"""What a run tells a tracker: the lines of `metrics.jsonl` and `validation.jsonl`, after they were written there."""

from typing import Protocol

from alignkd.student_train.metrics.file import Metrics


class Tracker(Protocol):
    """One place that shows the figures of a run; only the first rank has trackers."""

    def add(self, line: Metrics) -> None:
        """A step was written to `metrics.jsonl`."""

    def add_validation(self, line: Metrics) -> None:
        """A validation was written to `validation.jsonl`."""

    def flush(self) -> None:
        """Called before a checkpoint: what was added must survive a kill, as a resumed run does not add it again."""

    def close(self) -> None:
        """The run has ended, finished or not."""
