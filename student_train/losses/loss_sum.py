"""A loss as a sum and a count, so that means over any larger batch stay exact."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """Sum of a loss term over the elements of one batch.

    Attributes:
        total: scalar, float32 (float64 for float64 input).
        count: elements summed; 0 where the batch has none, e.g. no image.
    """

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """The mean over this batch alone; 0 for an empty one."""
        return self.total / max(self.count, 1)


def accumulable(values: Tensor) -> Tensor:
    """`values` in the precision losses are summed in: float32, or float64 if they already are."""
    return values if values.dtype == torch.float64 else values.float()
