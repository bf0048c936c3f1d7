"""A loss as a sum and a count, so that means over any larger batch are exact; and the sum in parts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class LossSum:
    """Sum of a loss term over the elements of one batch.

    Attributes:
        total: scalar, float32 (float64 for float64 input).
        count: number of elements summed; 0 if the batch has none, e.g. no image.
        parts: the summands of `total` [n], same dtype: one for each supervised position, vision token or block of
            attention in the formulas, one for each sample in the terms (`by_sample`), without gradient.
        by_layer: of a loss that compares several layers of the student: the share of each of them in `total`, without
            gradient; each has an equal share of the count.
        figures: other values of the parts by name, each [n], without gradient; they are not in `total`.
        ratios_G2: of the loss on preference pairs: log-probability of the chosen and of the rejected answer minus the
            reference's, float64, without gradient.
    """

    total: Tensor
    count: int
    parts: Tensor
    by_layer: Mapping[int, Tensor] = field(default_factory=dict)
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    ratios_G2: Tensor | None = None

    @classmethod
    def of(cls, parts: Tensor, count: int | None = None) -> Self:
        """The sum of some parts [n]; by default each is one element."""
        return cls(parts.sum(), len(parts) if count is None else count, parts)

    @property
    def mean(self) -> Tensor:
        """The mean over this batch alone; 0 for an empty one."""
        return self.total / max(self.count, 1)

    def by_sample(self, samples: Tensor, num_samples: int) -> Self:
        """The same sum with one part for each sample, without gradient.

        Args:
            samples: int64 [n], the sample of each present part.
            num_samples: B, samples of the batch.
        """
        assert self.parts.shape == samples.shape, (self.parts.shape, samples.shape)

        def added(parts: Tensor) -> Tensor:
            return parts.new_zeros(num_samples).index_add_(0, samples, parts)

        figures = {name: added(values) for name, values in self.figures.items()}
        return type(self)(self.total, self.count, added(self.parts.detach()), figures=figures)


def to_accum_dtype(values: Tensor) -> Tensor:
    """Convert to the dtype in which losses are summed: float32, or float64 if `values` already are."""
    return values if values.dtype == torch.float64 else values.float()
