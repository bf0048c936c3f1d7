"""When a checkpoint is due: every so many steps, every so many minutes, and at the end."""

from time import monotonic

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.objective.tally import StepTally


class CheckpointTimes:
    """The times of one run's checkpoints; minutes are counted from construction and from each checkpoint.

    Args:
        config: settings of the run, its length in steps.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config, self._last = config, monotonic()

    @property
    def time_is_up(self) -> bool:
        """Whether a checkpoint is due by this rank's clock; the first rank's decides, see `StepTally.gather`."""
        minutes = self._config.checkpoint_minutes
        return bool(minutes) and monotonic() - self._last >= 60 * (minutes or 0)

    def is_due(self, step: int, tally: StepTally) -> bool:
        """Whether all ranks must write a checkpoint after `step`, whose tally is gathered."""
        every = self._config.checkpoint_every
        by_steps = bool(every) and step % (every or 1) == 0
        return by_steps or tally.time_is_up or tally.stopped or step == self._config.num_steps

    def written(self) -> None:
        """Start counting minutes again."""
        self._last = monotonic()
