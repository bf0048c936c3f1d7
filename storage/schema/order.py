"""Deterministic order of samples: a pure function of seed and epoch, so that its only state is a sample count.

numpy guarantees that the raw stream of a bit generator never changes between versions, but not the result of
`Generator.permutation`. So the order is a stable argsort of the raw Philox stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

WORD = 2**64
# an epoch that no training reaches: the order in which samples are written to shards
WRITE_EPOCH = WORD - 1


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of `range(n)`, int64 [n], that depends on the arguments only.

    Raises:
        ValueError: `n` is negative, or seed or epoch is not an unsigned 64-bit number.
    """
    if n < 0 or not 0 <= seed < WORD or not 0 <= epoch < WORD:
        raise ValueError(f"n {n}, seed {seed}, epoch {epoch}: expected n >= 0 and seed, epoch in 0..2**64-1")
    stream = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(n)
    return np.argsort(stream, kind="stable").astype(np.int64)


def shard_plan(num_samples: int, shard_size: int, seed: int) -> list[NDArray[np.int64]]:
    """Data-set indices of each shard in the order of writing: a seeded permutation cut into pieces."""
    order = permutation(num_samples, seed, WRITE_EPOCH)
    return [order[start : start + shard_size] for start in range(0, num_samples, shard_size)]


class SampleOrder:
    """The endless stream of training samples: epoch after epoch, each in its own order.

    Nothing here changes during training. The samples of a step follow from its number, so a run can resume at any step
    with any number of ranks.
    """

    def __init__(self, num_samples: int, seed: int, global_batch: int) -> None:
        if num_samples < 1 or global_batch < 1:
            raise ValueError(f"num_samples {num_samples}, global_batch {global_batch}: expected at least 1")
        self.num_samples, self.seed, self.global_batch = num_samples, seed, global_batch
        self._epochs: dict[int, NDArray[np.int64]] = {}

    def global_batch_indices(self, step: int) -> NDArray[np.int64]:
        """Positions in the store of the samples of this step (from 0), int64 [global_batch]."""
        if step < 0:
            raise ValueError(f"step is {step}, expected 0 or more")
        stream = np.arange(step * self.global_batch, (step + 1) * self.global_batch)
        epochs, positions = np.divmod(stream, self.num_samples)
        pieces = [self._epoch(int(epoch))[positions[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(pieces)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        if epoch not in self._epochs:
            if len(self._epochs) > 1:  # a batch may span two epochs; older ones are not needed again
                del self._epochs[min(self._epochs)]
            self._epochs[epoch] = self._samples_of_epoch(epoch)
        return self._epochs[epoch]

    def _samples_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        return permutation(self.num_samples, self.seed, epoch)


@dataclass(frozen=True, kw_only=True, eq=False)
class OrderPart:
    """Samples that are seen equally often.

    Attributes:
        positions: int64 [n], distinct positions.
        weight: how often each is seen per epoch on average: 2.0 twice, 0.5 in every second epoch. In each epoch the
            part has `round(weight * n)` samples, at least one.
    """

    positions: NDArray[np.int64]
    weight: float = 1.0

    @property
    def per_epoch(self) -> int:
        """Samples per epoch."""
        return max(round(self.weight * len(self.positions)), min(1, len(self.positions)))


class MixedOrder(SampleOrder):
    """A stream of samples in which parts of the samples have weights; `SampleOrder` is one part of weight 1.

    An epoch has `round(weight * n)` samples of each part, all mixed. The whole copies are complete. The rest is taken
    from an endless stream of permutations of the part, so that every sample is seen equally often in the long run.
    """

    def __init__(self, parts: Sequence[OrderPart], seed: int, global_batch: int) -> None:
        self.parts = tuple(parts)
        super().__init__(sum(part.per_epoch for part in self.parts), seed, global_batch)

    def _samples_of_epoch(self, epoch: int) -> NDArray[np.int64]:
        every = np.concatenate([self._of_part(number, epoch) for number in range(len(self.parts))])
        return every[permutation(len(every), self.seed, epoch)]

    def _of_part(self, number: int, epoch: int) -> NDArray[np.int64]:
        part = self.parts[number]
        whole, rest = divmod(part.per_epoch, max(1, len(part.positions)))
        chosen = self._rests[number].global_batch_indices(epoch) if rest else np.zeros(0, np.int64)
        return np.concatenate([*[part.positions] * whole, part.positions[chosen]])

    @cached_property
    def _rests(self) -> dict[int, SampleOrder]:
        """For each part with an incomplete copy: the stream from which each epoch takes the next samples."""
        sizes = {number: (len(part.positions), part.per_epoch) for number, part in enumerate(self.parts)}
        return {
            # another seed for each part: equal seeds would choose the same places of parts of equal size
            number: SampleOrder(size, (self.seed + number + 1) % WORD, count % size)
            for number, (size, count) in sizes.items()
            if size and count % size
        }
