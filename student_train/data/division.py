"""Which samples each micro-batch has: a pure function of the order of samples, their lengths and the limit.

Losses are divided by the counts of the global batch, so every division of its samples gives the same gradient up to
rounding. Micro-batches of similar length have the least padding. For several ranks, the samples in the order of their
lengths are dealt out in turn: all ranks then have the same cuts, and as much to compute between two reductions of
gradients. Samples that belong together (`data/samples/pairs.py`) are one unit, as long as the longest of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.data.samples.pairs import unit_starts
from alignkd.vlm.inputs.batch_cuts import largest_first, least_work_cuts


@dataclass(frozen=True, kw_only=True)
class MicroBatchLimit:
    """The largest micro-batch of a rank; one of the two is given.

    Attributes:
        samples: number of units.
        positions: padded positions, that is samples times the longest of them; a unit that is larger is alone.
    """

    samples: int | None = None
    positions: int | None = None

    def cuts(self, lengths: Sequence[int], samples_of_unit: int = 1) -> list[int]:
        """The place of the first unit of each micro-batch, and the number of units; lengths are falling.

        Args:
            samples_of_unit: of the unit with the most.
        """
        if self.positions is not None:
            return least_work_cuts(lengths, most_positions=max(1, self.positions // samples_of_unit))
        assert self.samples is not None
        return [*range(0, len(lengths), self.samples), len(lengths)]


class Division:
    """Some samples, divided among ranks and micro-batches.

    Every rank has the same number of micro-batches. The one with the most padded positions comes first: if a step does
    not fit into memory, that shows in its first micro-batch, and blocks of memory that are large enough for it serve
    the smaller ones after it. Samples of a micro-batch are in the given order, so a step of one micro-batch on one rank
    does not depend on lengths.

    Args:
        samples: int64 [n].
        lengths: int64 [n], positions of each of them. Of equal lengths, the first sample comes first.
        limit: of each micro-batch.
        world_size: number of ranks. If it does not divide the units, some ranks have one less, and a micro-batch may be
            empty.
        starts: int64, place of the first sample of each unit of consecutive samples; None: each is one.
    """

    def __init__(
        self,
        samples: NDArray[np.int64],
        lengths: NDArray[np.int64],
        limit: MicroBatchLimit,
        world_size: int,
        starts: NDArray[np.int64] | None = None,
    ) -> None:
        self.samples, self.world_size = samples, world_size
        self._starts = np.arange(len(samples)) if starts is None else starts
        sizes = np.diff(self._starts, append=len(samples))
        if starts is not None and len(starts):
            lengths = np.maximum.reduceat(lengths, starts)
        self._by_length = np.argsort(-lengths, kind="stable")
        self._lengths, self._sizes = lengths[self._by_length], sizes[self._by_length]
        longest = self._lengths[::world_size].tolist()  # of the units that the ranks have at the same place
        self._spans = largest_first(longest, limit.cuts(longest, int(sizes.max(initial=1))))

    def __len__(self) -> int:
        """Number of micro-batches of each rank."""
        return len(self._spans)

    def of_rank(self, rank: int) -> list[NDArray[np.int64]]:
        """The samples of each micro-batch of a rank, int64."""
        mine = self._by_length[rank :: self.world_size]
        return [self._of_units(np.sort(mine[start:end])) for start, end in self._spans]

    @property
    def sizes(self) -> list[int]:
        """Samples of each micro-batch, all ranks together."""
        return [int(self._all_ranks(self._sizes, span).sum()) for span in self._spans]

    @property
    def padded_positions(self) -> int:
        """Positions of all micro-batches of all ranks, padding included."""
        total = 0
        for span in self._spans:
            sizes = self._all_ranks(self._sizes, span)
            longest = self._all_ranks(self._lengths, span)[: self.world_size]  # of each rank that has a unit
            counts = [sizes[rank :: self.world_size].sum() for rank in range(len(longest))]
            total += int(np.array(counts, np.int64) @ longest)
        return total

    def _of_units(self, units: NDArray[np.int64]) -> NDArray[np.int64]:
        """The samples of some units, in their order."""
        if len(self._starts) == len(self.samples):
            return self.samples[units]
        ends = np.append(self._starts[1:], len(self.samples))
        parts = [self.samples[self._starts[unit] : ends[unit]] for unit in units]
        return np.concatenate([self.samples[:0], *parts])

    def _all_ranks(self, values: NDArray[np.int64], span: tuple[int, int]) -> NDArray[np.int64]:
        return values[span[0] * self.world_size : span[1] * self.world_size]


class Divisions:
    """The micro-batches of every step of a run.

    Args:
        order: decides the samples of each step.
        lengths: int64, positions of every sample of the run.
        limit: of each micro-batch.
        world_size: number of ranks.
        pairs: pairs that are units, in an order that has them behind one another; None: samples are units.
    """

    def __init__(
        self,
        order: SampleOrder,
        lengths: NDArray[np.int64],
        limit: MicroBatchLimit,
        world_size: int,
        pairs: Pairs | None = None,
    ) -> None:
        self.order, self.lengths, self.limit, self.world_size, self.pairs = order, lengths, limit, world_size, pairs
        # The step that is computed, and the one whose batches are prepared meanwhile.
        self.of_step = lru_cache(maxsize=2)(self._of_step)

    def positions(self, steps: range, rank: int) -> Iterator[NDArray[np.int64] | None]:
        """The samples of each micro-batch of a rank, in order, int64; None as long as an interval has no weights yet.

        A step is looked up when its first micro-batch is requested.
        """
        for step in steps:
            while isinstance(self.order, DomainOrder) and not self.order.knows(step):
                yield None
            yield from self.of_step(step).of_rank(rank)

    def _of_step(self, step: int) -> Division:
        samples = self.order.global_batch_indices(step)
        starts = None if self.pairs is None else unit_starts(samples, self.pairs)
        return Division(samples, self.lengths[samples], self.limit, self.world_size, starts)
