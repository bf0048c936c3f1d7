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
        weights: of the loss terms.
        global_counts: elements of each term in the global batch.

    Attributes:
        means: after `gather`, each term's mean over the global batch; None where it has no element.
        loss: after `gather`, their weighted sum (eq. 7).
        wait_share: after `gather`, share of the step that ranks spent waiting for data.
        stopped: after `gather`, whether any rank was asked to stop; all ranks stop at the same step.
        time_is_up: after `gather`, whether the first rank's clock asks for a checkpoint; clocks of ranks differ.
    """

    def __init__(self, weights: Mapping[str, float], global_counts: Mapping[str, int]) -> None:
        self.weights, self.global_counts = weights, global_counts
        self.started, self.waited = perf_counter(), 0.0
        self._terms: list[Mapping[str, LossSum]] = []

    def add(self, terms: Mapping[str, LossSum]) -> Tensor:
        """Note a micro-batch; returns its share of the global loss, to go backward from."""
        self._terms.append({name: LossSum(term.total.detach(), term.count) for name, term in terms.items()})
        return weighted_total(terms, self.weights, self.global_counts)

    def gather(self, ranks: Ranks, *, stop: bool, time_is_up: bool = False) -> None:
        """Sum over all ranks: the one moment of a step at which they exchange anything but gradients."""
        names = list(self.global_counts)
        totals = [float(sum(terms[name].total for terms in self._terms)) for name in names]
        counts = [float(sum(terms[name].count for terms in self._terms)) for name in names]
        self.seconds = perf_counter() - self.started
        wishes = [float(stop), float(time_is_up and ranks.is_first)]
        *sums, waited, seconds, stopped, up = ranks.sum([*totals, *counts, self.waited, self.seconds, *wishes])
        found = dict(zip(names, map(int, sums[len(names) :]), strict=True))
        assert found == dict(self.global_counts), (found, self.global_counts)  # the index and the batches agree
        self.means = {
            name: total / found[name] if found[name] else None
            for name, total in zip(names, sums[: len(names)], strict=True)
        }
        self.loss = sum(self.weights[name] * (mean or 0.0) for name, mean in self.means.items())
        self.wait_share = waited / seconds
        self.stopped, self.time_is_up = stopped > 0, up > 0
