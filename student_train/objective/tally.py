"""Adds up the loss terms of one optimiser step over micro-batches and ranks."""

from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import islice
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.layer_sums import TERM, LayerSums
from alignkd.student_train.objective.objective import weighted_total
from alignkd.student_train.objective.preference.settings import PREFERENCE, MarginSums
from alignkd.student_train.objective.source_sums import SourceSums, StepSources


class StepTally:
    """Sums of one global batch.

    Args:
        weights: weight of each loss term.
        global_counts: elements of each loss term in the global batch.
        sources: of a run with samples of several sources.
        layers: the student's layers that the attention loss compares, if there are several.

    Attributes:
        waited: seconds that this rank waited for data.

    After `gather` also:
        means: mean of each term over the global batch; None if it has no element.
        loss: weighted sum of the means (eq. 7).
        by_layer: mean of the attention loss in each layer (`LayerSums.means`); {} without `layers`.
        by_source: samples, loss and terms of each source (`SourceSums.means`); {} without `sources`.
        preference: mean margin of the pairs of answers, and the share with a margin above 0; None without pairs.
        figures: mean of each further figure of a term (`LossSum.figures`) over the global batch, as `means`.
        seconds: duration of the step on this rank.
        wait_share: share of the step that the ranks spent waiting for data.
        stopped: whether any rank received a stop request; all ranks stop at the same step.
        time_is_up: whether a checkpoint is due by the first rank's clock; clocks of ranks differ.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        global_counts: Mapping[str, int],
        sources: StepSources | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        self.weights, self.global_counts = weights, global_counts
        self._by_source = None if sources is None else SourceSums(sources, weights, list(global_counts))
        self._by_layer = LayerSums(layers) if layers else None
        self._margins = MarginSums()
        self.started, self.waited = perf_counter(), 0.0
        self._totals: list[Mapping[str, Tensor]] = []
        self._counts: list[Mapping[str, int]] = []
        self._figures: dict[str, list[Tensor]] = {}
        self._terms_of_figures: dict[str, str] = {}

    def add(self, terms: Mapping[str, LossSum]) -> Tensor:
        """Record a micro-batch and return its share of the global loss, for the backward pass."""
        self._totals.append({name: term.total.detach() for name, term in terms.items()})
        self._counts.append({name: term.count for name, term in terms.items()})
        self._margins.add(terms[PREFERENCE].ratios_G2 if PREFERENCE in terms else None)
        if self._by_source is not None:
            self._by_source.add(terms)
        if self._by_layer is not None:
            self._by_layer.add(terms[TERM])
        for name, term in terms.items():
            for figure, parts in term.figures.items():
                self._figures.setdefault(figure, []).append(parts.sum())
                self._terms_of_figures[figure] = name
        return weighted_total(terms, self.weights, self.global_counts)

    def _all_totals(self, names: Sequence[str]) -> tuple[list[float], list[float]]:
        """The sums of terms and of figures on this rank, in one transfer, which waits until the step's work is done."""
        if not names:
            return [], []
        found = [[one[name] for one in self._totals] for name in names] + [*self._figures.values()]
        totals: list[float] = torch.stack([reduce(torch.add, one).double() for one in found]).tolist()
        return totals[: len(names)], totals[len(names) :]

    def gather(self, ranks: Ranks, *, stop: bool, time_is_up: bool = False) -> None:
        """Sum over all ranks: the only point of a step at which they exchange anything but gradients."""
        names = list(self.global_counts)
        totals, figures = self._all_totals(names)
        counts = [float(sum(found[name] for found in self._counts)) for name in names]
        layers = [] if self._by_layer is None else self._by_layer.totals()
        own = [] if self._by_source is None else self._by_source.totals()
        margins = self._margins.totals()
        self.seconds = perf_counter() - self.started
        requests = [float(stop), float(time_is_up and ranks.is_first)]
        sums = iter(
            ranks.sum([*totals, *counts, *figures, *margins, *layers, *own, self.waited, self.seconds, *requests])
        )
        totals, counts, figures, margins, layers, own = (
            [*islice(sums, len(values))] for values in (totals, counts, figures, margins, layers, own)
        )
        waited, seconds, stopped, up = sums
        found = dict(zip(names, map(int, counts), strict=True))
        assert found == dict(self.global_counts), (found, self.global_counts)  # the store's index and the batches agree
        self.means = {name: _mean(total, found[name]) for name, total in zip(names, totals, strict=True)}
        self.loss = sum(self.weights[name] * (mean or 0.0) for name, mean in self.means.items())
        self.figures = {
            figure: _mean(total, found[term])
            for (figure, term), total in zip(self._terms_of_figures.items(), figures, strict=True)
        }
        self.preference = MarginSums.means(margins)
        self.by_layer: dict[int, float | None] = (
            {} if self._by_layer is None else self._by_layer.means(layers, found[TERM])
        )
        self.by_source: dict[str, dict[str, Any]] = {} if self._by_source is None else self._by_source.means(own)
        self.wait_share = waited / seconds
        self.stopped, self.time_is_up = stopped > 0, up > 0


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None
