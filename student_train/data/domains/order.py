"""The order of samples when the shares of domains change from interval to interval.

It is a pure function of the seed, the step and the weights of the intervals so far. The weights are all that a
checkpoint has to keep.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, permutation
from alignkd.storage.schema.order import WORD


class DomainOrder(SampleOrder):
    """A stream of samples whose domains have the weights of the interval.

    An interval of K steps has round(K * global batch * weight) samples of each domain, all mixed. Each domain gives its
    samples from an endless stream of permutations, which goes on where the interval before has stopped. So every sample
    of a domain is seen equally often, whatever the weights are.

    Args:
        domains: int64, positions of the samples of each domain; none is empty.
        seed: of the order.
        global_batch: samples of a step.
        interval: K, steps of an interval.

    Attributes:
        weights: those of each interval so far.
    """

    def __init__(self, domains: Sequence[NDArray[np.int64]], seed: int, global_batch: int, interval: int) -> None:
        super().__init__(sum(map(len, domains)), seed, global_batch)
        self.domains, self.interval = tuple(domains), interval
        self.weights: list[tuple[float, ...]] = []
        self._starts = [np.zeros(len(domains), np.int64)]
        self._intervals: dict[int, NDArray[np.int64]] = {}

    def add(self, weights: Sequence[float]) -> None:
        """Set the weights of the next interval; they are not negative and sum to 1.

        Raises:
            ValueError: they are not the weights of these domains.
        """
        found = tuple(float(weight) for weight in weights)
        if len(found) != len(self.domains) or min(found) < 0 or abs(sum(found) - 1) > 1e-6:
            raise ValueError(f"weights are {found}, expected {len(self.domains)} that sum to 1")
        counts = apportioned(found, self.interval * self.global_batch)
        self.weights.append(found)
        self._starts.append(self._starts[-1] + counts)

    def restore(self, weights: Sequence[Sequence[float]]) -> None:
        """Set the weights of all intervals so far."""
        self.weights, self._starts, self._intervals = [], self._starts[:1], {}
        for found in weights:
            self.add(found)

    def knows(self, step: int) -> bool:
        """Whether the weights of the step's interval are set."""
        return step // self.interval < len(self.weights)

    def weights_of(self, step: int) -> tuple[float, ...]:
        """The weights of the domains in the interval of a step."""
        return self.weights[step // self.interval]

    def global_batch_indices(self, step: int) -> NDArray[np.int64]:
        """Positions of the samples of this step (from 0), int64 [global_batch].

        Raises:
            ValueError: the step is negative, or the weights of its interval are not set.
        """
        if step < 0 or not self.knows(step):
            raise ValueError(f"step is {step}, expected 0 to {len(self.weights) * self.interval - 1}")
        number, place = divmod(step, self.interval)
        return self._interval(number)[place * self.global_batch : (place + 1) * self.global_batch]

    def _interval(self, number: int) -> NDArray[np.int64]:
        if number not in self._intervals:
            if len(self._intervals) > 1:  # batches are prepared for the next interval at most
                del self._intervals[min(self._intervals)]
            self._intervals[number] = self._samples_of(number)
        return self._intervals[number]

    def _samples_of(self, number: int) -> NDArray[np.int64]:
        starts, stops = self._starts[number], self._starts[number + 1]
        pieces = [
            domain[stream(len(domain), (self.seed + place + 1) % WORD, int(starts[place]), int(stops[place]))]
            for place, domain in enumerate(self.domains)
        ]
        every = np.concatenate(pieces)
        return every[permutation(len(every), self.seed, number)]


def apportioned(weights: Sequence[float], total: int) -> NDArray[np.int64]:
    """Whole numbers in proportion to weights, with the sum `total`: the largest remainders are rounded up.

    Of equal remainders that of the first domain is.
    """
    shares = np.asarray(weights, np.float64) * (total / sum(weights))
    counts = np.floor(shares).astype(np.int64)
    order = np.argsort(-(shares - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def stream(number: int, seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """Places `start` to `stop` of an endless stream of permutations of `range(number)`, int64."""
    epochs, places = np.divmod(np.arange(start, stop), number)
    pieces = [permutation(number, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate([np.zeros(0, np.int64), *pieces])
