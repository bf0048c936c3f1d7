"""Adds up the loss terms of one optimiser step over micro-batches and ranks."""

from collections.abc import Mapping
from time import perf_counter

from torch import Tensor

from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.objective import weighted_total


class StepTally:
    """Sums of one global batch.

    Args:
        weights: weight of each loss term.
        global_counts: elements of each loss term in the global batch.

    Attributes:
        waited: seconds that this rank waited for data.

    After `gather` also:
        means: mean of each term over the global batch; None if it has no element.
        loss: weighted sum of the means (eq. 7).
        seconds: duration of the step on this rank.
        wait_share: share of the step that the ranks spent waiting for data.
        stopped: whether any rank received a stop request; all ranks stop at the same step.
        time_is_up: whether a checkpoint is due by the first rank's clock; clocks of ranks differ.
    """

    def __init__(self, weights: Mapping[str, float], global_counts: Mapping[str, int]) -> None:
        self.weights, self.global_counts = weights, global_counts
        self.started, self.waited = perf_counter(), 0.0
        self._terms: list[Mapping[str, LossSum]] = []

    def add(self, terms: Mapping[str, LossSum]) -> Tensor:
        """Record a micro-batch and return its share of the global loss, for the backward pass."""
        self._terms.append({name: LossSum(term.total.detach(), term.count) for name, term in terms.items()})
        return weighted_total(terms, self.weights, self.global_counts)

    def gather(self, ranks: Ranks, *, stop: bool, time_is_up: bool = False) -> None:
        """Sum over all ranks: the only point of a step at which they exchange anything but gradients."""
        names = list(self.global_counts)
        totals = [float(sum(terms[name].total for terms in self._terms)) for name in names]
        counts = [float(sum(terms[name].count for terms in self._terms)) for name in names]
        self.seconds = perf_counter() - self.started
        requests = [float(stop), float(time_is_up and ranks.is_first)]
        *sums, waited, seconds, stopped, up = ranks.sum([*totals, *counts, self.waited, self.seconds, *requests])
        found = dict(zip(names, map(int, sums[len(names) :]), strict=True))
        assert found == dict(self.global_counts), (found, self.global_counts)  # the store's index and the batches agree
        self.means = {
            name: total / found[name] if found[name] else None
            for name, total in zip(names, sums[: len(names)], strict=True)
        }
        self.loss = sum(self.weights[name] * (mean or 0.0) for name, mean in self.means.items())
        self.wait_share = waited / seconds
        self.stopped, self.time_is_up = stopped > 0, up > 0
