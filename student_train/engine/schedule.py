"""Learning rate as a plain function of the step."""

import math


def learning_rate_factor(step: int, *, steps: int, warmup_ratio: float) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine that is 0 after the last step.

    The first step has 1 / warm-up steps of the peak; in the usual formula it has a learning rate of 0.
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1)))
