"""Draws from the teacher estimate the forward divergence, without bias."""

import pytest
import torch
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.f_divergences import forward_kl, reverse_kl
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.sampled_logit import SampledDistribution, sampled_logit_loss

VOCAB = 9


def distribution(logits_NV: Tensor, weights_NV: Tensor) -> SampledDistribution:
    logprobs_NV = logits_NV.double().log_softmax(-1)
    return SampledDistribution(
        ids_NK=torch.arange(logits_NV.shape[1]).expand_as(logits_NV),
        weights_NK=weights_NV,
        entropy_N=-(logprobs_NV.exp() * logprobs_NV).sum(-1),
    )


def test_weights_equal_to_the_probabilities_give_the_divergence() -> None:
    torch.manual_seed(0)
    teacher_NV, student_NV = torch.randn(6, VOCAB) * 2, torch.randn(6, VOCAB, requires_grad=True)
    exact = logit_loss(student_NV, teacher_NV, divergence=forward_kl)
    found = sampled_logit_loss(student_NV, distribution(teacher_NV, teacher_NV.softmax(-1)))
    assert found.count == exact.count == 6
    torch.testing.assert_close(found.total.float(), exact.total, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(loss.total, student_NV)[0] for loss in (found, exact)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_draws", [1, 12])
def test_value_and_gradient_are_unbiased(num_draws: int) -> None:
    """The mean over many stores of few draws, within five of its standard errors; the reverse divergence is far off."""
    generator = torch.Generator().manual_seed(1)
    teacher_V, student_V = (torch.randn(VOCAB, generator=generator) * 2 for _ in range(2))
    repeats = 20_000
    drawn_RD = torch.multinomial(
        teacher_V.softmax(-1), repeats * num_draws, replacement=True, generator=generator
    ).view(repeats, num_draws)
    weights_RV = torch.zeros(repeats, VOCAB).scatter_add_(1, drawn_RD, torch.full(drawn_RD.shape, 1 / num_draws))
    student_RV = student_V.expand(repeats, VOCAB).clone().requires_grad_()
    total = sampled_logit_loss(student_RV, distribution(teacher_V.expand(repeats, VOCAB), weights_RV)).total

    exact_1V = student_V[None].clone().requires_grad_()
    exact = logit_loss(exact_1V, teacher_V[None], divergence=forward_kl).total
    cross_V = -student_V.log_softmax(-1)
    variance = (teacher_V.softmax(-1) * (cross_V - (teacher_V.softmax(-1) * cross_V).sum()).square()).sum() / num_draws
    error = 5 * float(variance / repeats) ** 0.5
    assert total.item() / repeats == pytest.approx(exact.item(), abs=error)
    reverse = float(logit_loss(student_V[None], teacher_V[None], divergence=reverse_kl).total)
    assert abs(exact.item() - reverse) > 5 * error

    gradient_V = torch.autograd.grad(total, student_RV)[0].mean(0)
    expected_V = torch.autograd.grad(exact, exact_1V)[0][0]
    deviation_V = (teacher_V.softmax(-1) * (1 - teacher_V.softmax(-1)) / (num_draws * repeats)).sqrt()
    assert ((gradient_V - expected_V).abs() <= 5 * deviation_V + 1e-5).all()
