"""Loss terms of one optimiser step by the source of the samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum


@dataclass(frozen=True, kw_only=True)
class StepSources:
    """The sources of one global batch, from the order and the stores' indices alone.

    Attributes:
        samples: samples of the global batch by source, also 0; the order is that of the numbers in `mine`.
        counts: elements of each loss term in the global batch, by source and term.
        mine: int64, the source of each sample of this rank, in the order of its micro-batches.
    """

    samples: Mapping[str, int]
    counts: Mapping[str, Mapping[str, int]]
    mine: NDArray[np.int64]


class SourceSums:
    """Adds up the parts of the loss terms by source.

    The parts stay on the device until `totals`, so a micro-batch costs no wait.

    Args:
        sources: the sources of the step.
        weights: weight of each loss term.
        terms: names of the terms that are added.
    """

    def __init__(self, sources: StepSources, weights: Mapping[str, float], terms: Sequence[str]) -> None:
        self.sources, self.weights, self.terms = sources, weights, tuple(terms)
        self._parts: list[Tensor] = []

    def add(self, found: Mapping[str, LossSum]) -> None:
        """Keep the terms of one micro-batch of B samples, float32 [terms, B]."""
        self._parts.append(torch.stack([found[name].parts.detach() for name in self.terms]))

    def totals(self) -> list[float]:
        """Sums of this rank, source by source and term by term: to be added over all ranks."""
        size = len(self.sources.samples)
        if not self._parts:
            return [0.0] * (size * len(self.terms))
        parts = torch.cat(self._parts, dim=1).tolist()
        sums = [np.bincount(self.sources.mine, weights=term, minlength=size) for term in parts]
        return [float(value) for value in np.stack(sums, axis=1).flatten()]

    def means(self, totals: Sequence[float]) -> dict[str, dict[str, Any]]:
        """Figures of each source: `samples`, `loss` and every term; None where it has no element.

        Args:
            totals: the sums of `totals` over all ranks.
        """
        found = {}
        for number, (name, samples) in enumerate(self.sources.samples.items()):
            own = totals[number * len(self.terms) : (number + 1) * len(self.terms)]
            counts = self.sources.counts[name]
            means = {
                term: total / counts[term] if counts[term] else None
                for term, total in zip(self.terms, own, strict=True)
            }
            loss = sum(self.weights[term] * (mean or 0.0) for term, mean in means.items()) if samples else None
            found[name] = {"samples": samples, "loss": loss, **means}
        return found
