"""The largest micro-batch of a training, for `train.micro_batch` and for `train.token_budget`."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from alignkd.student_train.config import TrainConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class LargestMicroBatch:
    """What a micro-batch holds at most, expressed as `samples` equal samples.

    A token budget admits more short samples than long ones, so every figure may have its maximum in another
    micro-batch. The equal samples then have the sum of each maximum, which no sample needs to have.

    Attributes:
        samples: `micro_batch`, in pairs twice as many, or the samples of the greatest length that the budget holds.
        length: positions of each of them, padding included.
        lengths: int64, positions of every sample of the data, rising.
        order: int64, the sample of each of `lengths`.
        counts: int64, samples that a micro-batch may have if this is the longest of them and a step has enough.
    """

    samples: int
    length: int
    lengths: NDArray[np.int64]
    order: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, train: TrainConfig, lengths: NDArray[np.int64], devices: int) -> Self:
        """The largest micro-batch of samples of these lengths."""
        order = np.argsort(lengths, kind="stable")
        rising, longest = lengths[order], int(lengths.max())
        if train.token_budget is None:
            assert train.micro_batch is not None
            samples = train.micro_batch * (2 if train.in_pairs else 1)
            counts = np.full(len(lengths), samples)
            return cls(samples=samples, length=longest, lengths=rising, order=order, counts=counts)
        counts = np.maximum(1, train.token_budget // np.maximum(rising, 1))
        most = max(1, step_samples(train, devices) // devices) * (2 if train.in_pairs else 1)
        samples = min(int(counts[-1]), most)
        padded = min(max(train.token_budget, longest), most * longest)
        return cls(samples=samples, length=-(-padded // samples), lengths=rising, order=order, counts=counts)

    def most(self, values: NDArray[np.int64]) -> int:
        """A figure of each of the equal samples: the largest sum over a micro-batch, padded to its largest value.

        Args:
            values: the figure of every sample of the data.
        """
        largest = int((self.counts * np.maximum.accumulate(values[self.order])).max())
        return -(-largest // int(self.counts[-1]))


def step_samples(train: TrainConfig, devices: int) -> int:
    """Samples of an optimiser step on so many devices, whether or not they can be divided among them."""
    return train.global_batch or (train.micro_batch or 1) * devices


def may_accumulate(train: TrainConfig, devices: int) -> bool:
    """Whether a step may have more than one micro-batch per device."""
    return step_samples(train, devices) > (train.micro_batch or 1) * devices
