"""The term on pairs: fused as direct autograd over whole logits, several micro-batches as one batch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkd.student_train.data.targets import PreferenceTargets
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.preference import BatchMeans, preference_loss
from alignkd.student_train.objective.preference.settings import (
    BatchStatistics,
    MarginSums,
    PreferenceInputs,
    PreferenceSettings,
    statistics_of,
)
from alignkd.student_train.objective.preference.term import preference_term
from alignkd.vlm.families.family import Head

LENGTH, WIDTH, VOCAB = 9, 6, 30
SETTINGS = {
    "dpo": PreferenceSettings(loss="dpo", beta=0.3, smoothing=0.1),
    "ipo": PreferenceSettings(loss="ipo", beta=0.2),
    "margin_mse": PreferenceSettings(loss="margin_mse"),
    "kto": PreferenceSettings(loss="kto_pair", beta=0.4),
    "kto with gradient": PreferenceSettings(loss="kto_pair", beta=0.4, means_have_gradient=True),
}


class Samples:
    """Hidden states, labels and supervised positions of some pairs: samples 2g and 2g + 1."""

    def __init__(self, pairs: int, means: tuple[float, float] = (1.0, 0.6)) -> None:
        random = torch.Generator().manual_seed(7)
        self.hidden = torch.randn(2 * pairs, LENGTH, WIDTH, generator=random, dtype=torch.float64).requires_grad_()
        weight = torch.randn(VOCAB, WIDTH, generator=random, dtype=torch.float64)
        self.weight = weight.requires_grad_()
        self.labels = torch.randint(VOCAB - 4, (2 * pairs, LENGTH), generator=random)
        self.counts = [int(n) for n in torch.randint(1, LENGTH, (2 * pairs,), generator=random)]
        # near the sums under the student, so that the ratios have these means, and sigmoids a slope
        noise = torch.randn(pairs, 2, generator=random, dtype=torch.float64)
        noise = noise - noise.mean(0) + torch.tensor(means)
        self.reference = (self.sums().detach() - noise.flatten()).float()

    @property
    def head(self) -> Head:
        return Head(weight_VD=self.weight)

    def sums(self) -> Tensor:
        """Log-probability of each sample's labels, from whole logits."""
        logprobs = (self.hidden @ self.weight.T)[..., : VOCAB - 4].log_softmax(-1)
        return torch.stack([
            sum(logprobs[row, place, self.labels[row, place]] for place in range(count))  # type: ignore[misc]
            for row, count in enumerate(self.counts)
        ])  # fmt: skip

    def term(
        self, pairs: list[int], settings: PreferenceSettings, statistics: BatchStatistics | None, chunk_rows: int = 4
    ) -> LossSum:
        """The term over a micro-batch of these pairs."""
        rows = [2 * pair + side for pair in pairs for side in range(2)]
        places = [torch.arange(self.counts[row]) + n * LENGTH for n, row in enumerate(rows)]
        supervised = torch.cat([torch.zeros(0, dtype=torch.int64), *places])
        batch = SimpleNamespace(
            supervised_N=supervised,
            labels_N=self.labels[rows].flatten()[supervised],
            preference=PreferenceTargets(
                places_M=torch.arange(len(supervised)),
                answers_M=torch.arange(len(rows)).repeat_interleave(
                    torch.tensor([self.counts[row] for row in rows], dtype=torch.int64)
                ),
                reference_G2=self.reference[rows].unflatten(0, (-1, 2)),
                chosen_G=torch.arange(0, len(rows), 2),
            ),
        )
        inputs = PreferenceInputs(
            settings=settings,
            head=self.head,
            num_tokens=VOCAB - 4,
            chunk_bytes=chunk_rows * VOCAB * 8,
            statistics=statistics,
        )
        forward: Any = SimpleNamespace(
            batch=batch, preference=inputs, hidden_BLD=self.hidden[rows], num_samples=len(rows)
        )
        return preference_term(forward)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return [*torch.autograd.grad(loss, [self.hidden, self.weight], retain_graph=True)]


def directly(samples: Samples, settings: PreferenceSettings) -> LossSum:
    """The loss of all pairs by autograd alone."""
    ratios = (samples.sums() - samples.reference.double()).unflatten(0, (-1, 2))
    means = BatchMeans.of(ratios[:, 0], ratios[:, 1])
    found = preference_loss(
        settings.loss,
        ratios[:, 0],
        ratios[:, 1],
        beta=settings.beta,
        smoothing=settings.smoothing,
        means=means if settings.means_have_gradient else means.detach(),
    )
    return LossSum.of(found.parts / 2) if settings.loss == "kto_pair" else found


@pytest.mark.parametrize("chunk_rows", [1, 4, 1000])
@pytest.mark.parametrize("name", SETTINGS)
def test_value_and_gradient_are_those_of_direct_autograd(name: str, chunk_rows: int) -> None:
    samples, settings = Samples(5), SETTINGS[name]
    expected = directly(samples, settings)
    found = samples.term([0, 1, 2, 3, 4], settings, None, chunk_rows)
    assert found.count == 5
    torch.testing.assert_close(found.total, expected.total, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.parts[::2], expected.parts.detach(), rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(samples.gradients(found.total), samples.gradients(expected.total), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        assert theirs.abs().max() > 1e-3
    with torch.no_grad():
        torch.testing.assert_close(
            samples.term([0, 1, 2, 3, 4], settings, None).total, expected.total.detach(), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("means", [(1.0, 0.6), (0.5, -2.0)])
@pytest.mark.parametrize("name", SETTINGS)
def test_micro_batches_and_ranks_are_one_batch(name: str, means: tuple[float, float]) -> None:
    """Two ranks, one with two micro-batches, of which one has no pair; a mean below 0 is cut off."""
    samples, settings = Samples(5, means), SETTINGS[name]
    expected = directly(samples, settings)
    ranks = [[[0, 3], []], [[1, 2, 4]]]
    with torch.no_grad():
        ratios = [torch.cat([samples.term(part, settings, None).ratios_G2 for part in parts]) for parts in ranks]  # type: ignore[misc]
    statistics = None
    if settings.needs_statistics:
        # what `Ranks.sum` does: each rank adds its own numbers, in two rounds
        rounds: list[list[list[float]]] = [[], []]
        for of_rank in ratios:
            calls: list[list[float]] = []
            statistics_of(of_rank, settings, lambda values, calls=calls: calls.append(values) or values)
            rounds[0].append(calls[0])
        sums = [sum(column) for column in zip(*rounds[0], strict=True)]
        for of_rank in ratios:
            calls = []

            def of_first(values: list[float], calls: list[list[float]] = calls) -> list[float]:
                calls.append(values)
                return sums if len(calls) == 1 else values

            statistics_of(of_rank, settings, of_first)
            rounds[1] += calls[1:]
        slopes = [sum(column) for column in zip(*rounds[1], strict=True)]
        answers = iter([sums, slopes])
        statistics = statistics_of(ratios[0], settings, lambda values: next(answers))
        assert statistics.chosen == pytest.approx(means[0], rel=1e-5)
        assert statistics.rejected == pytest.approx(max(0.0, means[1]), rel=1e-5)
        assert (statistics.rejected_slope == 0) == (means[1] < 0 or not settings.means_have_gradient)
    parts = [samples.term(part, settings, statistics) for rank in ranks for part in rank]
    total = torch.stack([part.total for part in parts]).sum()
    assert sum(part.count for part in parts) == 5
    torch.testing.assert_close(total, expected.total, rtol=1e-8, atol=1e-11)
    for ours, theirs in zip(samples.gradients(total), samples.gradients(expected.total), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)


def test_margin_and_accuracy() -> None:
    sums = MarginSums()
    sums.add(None)
    assert MarginSums.means(sums.totals()) is None
    sums.add(torch.tensor([[2.0, 1.0], [0.0, 3.0]]))
    sums.add(torch.tensor([[5.0, 1.0], [1.0, 1.0]]))
    assert MarginSums.means(sums.totals()) == (0.5, 0.5)
