"""A loss as a sum and a count, so that means over any larger batch are exact."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """Sum of a loss term over the elements of one batch.

    Attributes:
        total: scalar, float32 (float64 for float64 input).
        count: number of elements summed; 0 if the batch has none, e.g. no image.
    """

    total: Tensor
    count: int

    @property
    def mean(self) -> Tensor:
        """The mean over this batch alone; 0 for an empty one."""
        return self.total / max(self.count, 1)


def to_accum_dtype(values: Tensor) -> Tensor:
    """Convert to the dtype in which losses are summed: float32, or float64 if `values` already are."""
    return values if values.dtype == torch.float64 else values.float()
