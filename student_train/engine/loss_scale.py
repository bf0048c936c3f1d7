"""Dynamic loss scaling of float16 by the rules and with the counters of DeepSpeed, so that either continues the other.

The second of two overflows halves the scale, then every one; 1000 steps without an overflow double it.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar

from alignkd.student_train.errors import TrainError

OVERFLOWS = (
    "dtype float16: the gradient overflows even with a loss scale of 1; lower train.learning_rate, or set dtype to "
    "bfloat16 or float32"
)


@dataclass
class LossScale:
    """The factor of the loss, and what decides when it changes; names are those of DeepSpeed's `DynamicLossScaler`.

    Attributes:
        cur_scale: the factor.
        cur_iter: steps that were done or skipped.
        last_overflow_iter: value of `cur_iter` at the last overflow; -1 before the first one.
        cur_hysteresis: overflows until the factor falls.
    """

    cur_scale: float = 2.0**16
    cur_iter: int = 0
    last_overflow_iter: int = -1
    cur_hysteresis: int = 2

    FACTOR: ClassVar[float] = 2.0
    WINDOW: ClassVar[int] = 1000
    HYSTERESIS: ClassVar[int] = 2
    LEAST: ClassVar[float] = 1.0

    def update(self, *, overflow: bool) -> None:
        """Call after every step.

        Raises:
            TrainError: the gradient overflows even with the least factor.
        """
        if overflow:
            self._fall()
            self.last_overflow_iter = self.cur_iter
        else:
            steps = self.cur_iter - self.last_overflow_iter - 1
            if steps > 0 and steps % self.WINDOW == 0:
                self.cur_hysteresis = self.HYSTERESIS
                self.cur_scale *= self.FACTOR
        self.cur_iter += 1

    @property
    def counters(self) -> dict[str, float]:
        """Every attribute."""
        return {name: float(value) for name, value in asdict(self).items()}

    def load(self, counters: dict[str, float]) -> None:
        """Set those attributes that `counters` has."""
        for name, value in asdict(self).items():
            setattr(self, name, type(value)(counters.get(name, value)))

    def _fall(self) -> None:
        if self.cur_hysteresis > 1:
            self.cur_hysteresis -= 1
            return
        if self.cur_scale == self.LEAST:
            raise TrainError(OVERFLOWS)
        self.cur_scale = max(self.cur_scale / self.FACTOR, self.LEAST)
