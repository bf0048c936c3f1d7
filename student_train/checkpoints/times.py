"""When a checkpoint is due, and which of them remain: by steps, by minutes, by passes over the store, at the end."""

from time import monotonic

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.tally import StepTally


class CheckpointTimes:
    """The times of one run's checkpoints; minutes are counted from construction and from each checkpoint.

    Args:
        config: settings of the run, its length in steps.
        num_samples: samples of the store.
        global_batch: samples of an optimiser step.
    """

    def __init__(self, config: TrainConfig, *, num_samples: int, global_batch: int) -> None:
        self._config, self._last = config, monotonic()
        self._num_samples, self._global_batch = num_samples, global_batch

    @property
    def time_is_up(self) -> bool:
        """Whether a checkpoint is due by this rank's clock; the first rank's decides, see `StepTally.gather`."""
        minutes = self._config.checkpoint_minutes
        return bool(minutes) and monotonic() - self._last >= 60 * (minutes or 0)

    def is_due(self, step: int, tally: StepTally) -> bool:
        """Whether all ranks must write a checkpoint after `step`, whose tally is gathered."""
        every = self._config.checkpoint_every
        by_steps = bool(every) and step % (every or 1) == 0
        by_need = self.is_kept(step) or step == self._config.num_steps
        return by_steps or tally.time_is_up or tally.stopped or by_need

    def is_kept(self, step: int) -> bool:
        """Whether the checkpoint after `step` remains beside the newest ones."""
        every = self._config.keep_every
        by_steps = bool(every) and step % (every or 1) == 0
        return by_steps or (self._config.keep_each_epoch and self._ends_epoch(step))

    def _ends_epoch(self, step: int) -> bool:
        """Whether a pass over the store is complete after `step`, and was not before it."""
        return self._epochs_after(step) > self._epochs_after(step - 1)

    def _epochs_after(self, step: int) -> int:
        return step * self._global_batch // self._num_samples

    def written(self) -> None:
        """Start counting minutes again."""
        self._last = monotonic()
