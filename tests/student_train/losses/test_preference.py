"""Losses on pairs of answers against plain loops over Python numbers, and their limits."""

import math
from typing import Any

import pytest
import torch

from alignkd.student_train.losses.preference import (
    PREFERENCE_LOSSES,
    BatchMeans,
    dpo_loss,
    ipo_loss,
    margin_mse_loss,
    preference_loss,
)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def by_loops(kind: str, chosen: list[float], rejected: list[float], beta: float, smoothing: float) -> list[float]:
    means = [max(0.0, sum(values) / len(values)) for values in (chosen, rejected)]
    found = []
    for c, r in zip(chosen, rejected, strict=True):
        margin = c - r
        found.append(
            {
                "dpo": lambda m=margin: (
                    -(1 - smoothing) * math.log(sigma(beta * m)) - smoothing * math.log(sigma(-beta * m))
                ),
                "ipo": lambda m=margin: (m - 1 / (2 * beta)) ** 2,
                "kto_pair": lambda c=c, r=r: (1 - sigma(beta * (c - means[1]))) + (1 - sigma(beta * (means[0] - r))),
                "margin_mse": lambda m=margin: m * m,
            }[kind]()
        )
    return found


@pytest.mark.parametrize("kind", PREFERENCE_LOSSES)
@pytest.mark.parametrize(("beta", "smoothing", "pairs"), [(0.1, 0.0, 7), (0.7, 0.3, 1), (2.0, 0.0, 3)])
def test_values_are_those_of_loops(kind: Any, beta: float, smoothing: float, pairs: int) -> None:
    random = torch.Generator().manual_seed(pairs)
    chosen, rejected = (torch.randn(pairs, generator=random, dtype=torch.float64) * 3 for _ in range(2))
    found = preference_loss(kind, chosen, rejected, beta=beta, smoothing=smoothing)
    expected = torch.tensor(by_loops(kind, chosen.tolist(), rejected.tolist(), beta, smoothing), dtype=torch.float64)
    torch.testing.assert_close(found.parts, expected, rtol=1e-10, atol=1e-12)
    assert found.count == pairs
    single = preference_loss(kind, chosen.float(), rejected.float(), beta=beta, smoothing=smoothing)
    torch.testing.assert_close(single.parts, expected.float(), rtol=2e-5, atol=1e-5)


def test_beta_0_gives_ln_2_or_a_half() -> None:
    chosen, rejected = torch.randn(5) * 9, torch.randn(5)
    for smoothing in (0.0, 0.2):
        found = dpo_loss(chosen - rejected, beta=0.0, smoothing=smoothing)
        torch.testing.assert_close(found.parts, torch.full((5,), math.log(2)))
    torch.testing.assert_close(preference_loss("kto_pair", chosen, rejected, beta=0.0).parts, torch.ones(5))


def test_margin_mse_is_the_limit_of_ipo() -> None:
    margin = torch.randn(6, dtype=torch.float64)
    differences = [
        float((ipo_loss(margin, beta=beta).parts - margin_mse_loss(margin).parts).abs().max())
        for beta in (1e2, 1e4, 1e6, 1e8)
    ]
    assert differences == sorted(differences, reverse=True) and differences[-1] < 1e-7


@pytest.mark.parametrize("kind", ["dpo", "margin_mse", "kto_pair"])
def test_equal_answers_have_no_gradient(kind: Any) -> None:
    """The log-probability of a text that is both answers: what one side gains the other loses."""
    text = torch.randn(4, dtype=torch.float64, requires_grad=True)
    loss = preference_loss(kind, text - 1.0, text - 1.0, beta=0.5)
    if kind == "kto_pair":  # its halves are equal and opposite where both means are 0
        low = text - text.detach().abs() - 5
        loss = preference_loss(kind, low, low, beta=0.5)
    (gradient,) = torch.autograd.grad(loss.total, text)
    assert gradient.abs().max() < 1e-12


def test_large_margins_stay_finite() -> None:
    for margin in (-1e4, 1e4):
        chosen = torch.tensor([margin], requires_grad=True)
        for kind in ("dpo", "kto_pair"):
            loss = preference_loss(kind, chosen, torch.zeros(1), beta=1.0, smoothing=0.0)
            (gradient,) = torch.autograd.grad(loss.total, chosen)
            assert loss.total.isfinite() and gradient.isfinite().all()


def test_means_are_cut_off_at_0_and_have_a_gradient_on_request() -> None:
    chosen = torch.tensor([1.0, 3.0], requires_grad=True)
    means = BatchMeans.of(chosen, torch.tensor([-1.0, -2.0]))
    assert means.chosen.item() == 2 and means.rejected.item() == 0
    assert torch.autograd.grad(means.chosen, chosen)[0].tolist() == [0.5, 0.5]
    assert not means.detach().chosen.requires_grad
    assert BatchMeans.of(torch.zeros(0), torch.zeros(0)).chosen.item() == 0
