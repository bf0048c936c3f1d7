"""Learning rate as a plain function of the step."""

import math
from dataclasses import dataclass

from alignkd.student_train.config import ScheduleOfExtension


def learning_rate_factor(step: int, *, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine that is 0 after the last step.

    The first step has 1 / warm-up steps of the peak; in the usual formula it has a learning rate of 0.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate of every step of a run as a share of the peak learning rates.

    Attributes:
        steps: optimiser steps of the run, counted from the very beginning.
        warmup_ratio: share of the steps of this schedule over which the rate rises.
        first_step: steps that an earlier run has done; the schedule covers the steps after them.
        kind: `restart`: warm-up and cosine to 0; `linear`: from `factor` to 0; `constant`: stays at `factor`.
        factor: largest share of the peak learning rates.
    """

    steps: int
    warmup_ratio: float
    first_step: int = 0
    kind: ScheduleOfExtension = "restart"
    factor: float = 1.0

    def __call__(self, step: int) -> float:
        """The share at `step` (from 0, at least `first_step`); `restart` and `linear` are 0 after the last step."""
        done, steps = step - self.first_step, self.steps - self.first_step
        if self.kind == "constant":
            return self.factor
        if self.kind == "linear":
            return self.factor * (steps - done) / steps
        return self.factor * learning_rate_factor(done, steps=steps, warmup_ratio=self.warmup_ratio)
