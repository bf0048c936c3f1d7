"""One validation: every term as a mean over all samples, the same for any number of ranks and any micro-batch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from alignkd.student_train.data.division import Division, MicroBatchLimit
from alignkd.student_train.data.handoff.stream import FromWorkers, closing_workers
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.preference.settings import (
    PREFERENCE,
    MarginSums,
    PreferenceSettings,
    statistics_of,
)
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.validation.samples import Prepared, Unusable, ValidationSamples


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The figures of one state.

    Attributes:
        means: mean of each term over all samples; None if they have no element of it.
        loss: weighted sum of the means, as in training.
        samples: samples that were used.
        unusable: those that were not.
        seconds: duration on this rank.
        preference: see `StepTally`.
    """

    means: dict[str, float | None]
    loss: float
    samples: int
    unusable: tuple[Unusable, ...]
    seconds: float
    preference: tuple[float, float] | None = None


def evaluate(
    student: DistilledStudent,
    samples: ValidationSamples,
    ranks: Ranks,
    *,
    limit: MicroBatchLimit,
    workers: int,
    stop_requested: Callable[[], bool],
) -> Evaluation | None:
    """Compute the terms of all samples; called by ALL ranks. None if any rank was asked to stop.

    The student is in evaluation mode meanwhile, and is what it was afterwards. It is called directly, so neither the
    optimiser nor the count of micro-batches notices.

    Args:
        limit: of the samples of a rank in a forward pass.
        workers: processes that prepare batches; they end with the validation.

    Raises:
        TrainError: a sample of a store cannot be used, or a worker was killed.
    """
    began = perf_counter()
    division = Division(samples.positions, samples.lengths, limit, ranks.world_size, samples.starts)
    mine = division.of_rank(ranks.rank)
    # The workers share this process's memory, of which nothing is written until they have ended.
    prepared: Iterator[Prepared] = (
        FromWorkers(samples.prepare, mine, workers) if workers else map(samples.prepare, mine)
    )
    sums = _Sums(samples.losses, ranks.device, student.preference)
    with closing_workers(prepared), _evaluating(student, samples), _bar(samples.positions, ranks) as bar:
        for part, size in zip(prepared, division.sizes, strict=True):
            # every rank takes part in every pass, also one without a sample of its own
            (stopped,) = ranks.sum([float(stop_requested())])
            if stopped:
                return None
            sums.add(student, part)
            bar.update(size)
    return sums.gathered(ranks, began)


class _Sums:
    """Sums of the terms over the batches of this rank; totals stay on the device."""

    def __init__(self, losses: LossConfig, device: torch.device, preference: PreferenceSettings | None) -> None:
        self.weights, self._preference = losses.weights, preference
        self._ratios: list[Tensor] = []
        self._margins = MarginSums()
        self.totals: dict[str, Tensor] = {
            name: torch.zeros((), dtype=torch.float64, device=device) for name in self.weights
        }
        self.counts = dict.fromkeys(self.weights, 0)
        self.samples, self.unusable = 0, list[Unusable]()

    def add(self, student: DistilledStudent, part: Prepared) -> None:
        """Add a batch."""
        self.unusable += part.unusable
        if part.batch is None:
            return
        device = next(iter(self.totals.values())).device
        for name, term in student(part.batch.to(device)).items():
            self.totals[name] += term.total.double()
            self.counts[name] += int(term.count)
            if term.ratios_G2 is not None:
                self._ratios.append(term.ratios_G2)
                self._margins.add(term.ratios_G2)
        self.samples += len(part.batch.sequences.input_ids_BL)

    def gathered(self, ranks: Ranks, began: float) -> Evaluation:
        """The figures of all ranks together."""
        names = list(self.weights)
        if self._preference is not None and self._preference.needs_statistics and PREFERENCE in self.weights:
            self.totals[PREFERENCE] = self._preference_total(self._preference, ranks)
        own = [*(float(self.totals[name]) for name in names), *(float(self.counts[name]) for name in names)]
        *sums, margin, above, pairs, samples = ranks.sum([*own, *self._margins.totals(), float(self.samples)])
        means = {
            name: total / count if count else None
            for name, total, count in zip(names, sums[: len(names)], sums[len(names) :], strict=True)
        }
        return Evaluation(
            means=means,
            loss=sum(self.weights[name] * (mean or 0.0) for name, mean in means.items()),
            samples=int(samples),
            unusable=tuple(chain.from_iterable(ranks.from_all(self.unusable))),
            seconds=perf_counter() - began,
            preference=MarginSums.means([margin, above, pairs]),
        )

    def _preference_total(self, settings: PreferenceSettings, ranks: Ranks) -> Tensor:
        """The loss of this rank's pairs with the means over all samples, which are known now."""
        ratios_G2 = torch.cat([torch.zeros((0, 2), dtype=torch.float64, device=ranks.device), *self._ratios])
        return settings.of_ratios(ratios_G2, statistics_of(ratios_G2, settings, ranks.sum).means_for(ratios_G2)).total


@contextmanager
def _evaluating(student: DistilledStudent, samples: ValidationSamples) -> Iterator[None]:
    """The student without gradients and in evaluation mode, with the terms of these samples."""
    modes = [(module, module.training) for module in student.modules()]
    losses, stem, statistics = student.losses, student.stem, student.statistics
    student.losses, student.statistics = samples.losses, None
    if not samples.has_targets:
        student.stem = None
    student.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        student.losses, student.stem, student.statistics = losses, stem, statistics
        for module, training in modes:
            module.training = training


def _bar(positions: NDArray[np.int64], ranks: Ranks) -> Any:
    shown = ranks.is_first and sys.stderr.isatty()
    return tqdm(total=len(positions), desc="validation", unit="sample", leave=False, disable=not shown)
