"""The divergences on the support: values and gradients equal a dense computation, fused or not; what is refused."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkd.student_train.data.targets import RaggedEntries, TruncatedTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.logits.divergences.f_divergences import SUPPORT, named_divergence
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.objective.logits.divergence_table import LogitDivergence
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head

V, D = 9, 4
NAMES: list[Any] = list(SUPPORT)


def kept_entries(teacher_NV: Tensor, num_kept: list[int]) -> TruncatedTargets:
    """The most probable tokens of each position, renormalised, without a tail."""
    ids = [row.argsort(descending=True)[:keep] for row, keep in zip(teacher_NV, num_kept, strict=True)]
    values = [row[of].log_softmax(0) for row, of in zip(teacher_NV, ids, strict=True)]
    entries = RaggedEntries(
        ids_E=torch.cat(ids).to(torch.uint32),
        values_E=torch.cat(values).float(),
        offsets=torch.tensor([0, *num_kept]).cumsum(0),
        widest=max(num_kept),
    )
    return TruncatedTargets(entries=entries, tail_logmass_N=None)


def dense(name: str, student_NV: Tensor, teacher: TruncatedTargets, temperature: float, mixture: float) -> Tensor:
    """Textbook formulas on probabilities over the kept tokens, position by position."""
    total = torch.zeros((), dtype=student_NV.dtype)
    found: TruncatedDistribution = teacher.distribution()
    for row, ids, logprobs, kept in zip(student_NV, found.ids_NK, found.logprobs_NK, found.kept_NK, strict=True):
        of = ids[kept]
        q = (row / temperature).softmax(0)[of]
        q = q / q.sum()
        p = logprobs[kept].to(row.dtype).exp() ** (1 / temperature)
        p = p / p.sum()
        mixed = mixture * p + (1 - mixture) * q
        total = (
            total
            + {
                "support_reverse_kl": lambda p=p, q=q: (q * (q / p).log()).sum(),
                "support_forward_kl": lambda p=p, q=q: (p * (p / q).log()).sum(),
                "support_js": lambda p=p, q=q, m=mixed: (
                    mixture * (p * (p / m).log()).sum() + (1 - mixture) * (q * (q / m).log()).sum()
                ),
            }[name]()
        )
    return total * temperature**2


@settings(max_examples=40)
@given(
    num_kept=st.lists(st.integers(1, V), min_size=1, max_size=5),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_equal_the_dense_formula(
    name: Any, num_kept: list[int], seed: int, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(num_kept), V)
    student_NV = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher = kept_entries(torch.randn(shape, dtype=torch.float64, generator=generator) * 2, num_kept)
    mixture = 0.3 if name == "support_js" else None
    loss = logit_loss(
        student_NV,
        teacher.distribution(),
        divergence=named_divergence(name, mixture),
        temperature=temperature,
        on_support=True,
    ).total
    expected = dense(name, student_NV, teacher, temperature, mixture or 0.5)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-9)
    found, reference = (torch.autograd.grad(value, student_NV)[0] for value in (loss, expected))
    torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-9)
    assert loss.item() > -1e-9
    outside = torch.ones(shape, dtype=torch.bool)
    for n, (ids, kept) in enumerate(zip(teacher.distribution().ids_NK, teacher.distribution().kept_NK, strict=True)):
        outside[n, ids[kept]] = False
    assert found[outside].abs().max() < 1e-12 if outside.any() else True  # other logits have no part in it


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("num_tokens", [None, V - 2])
@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_fused_with_the_head_and_cross_entropy(
    name: Any, temperature: float, num_tokens: int | None, chunk: int
) -> None:
    """Both ways of `head_terms`: one shared pass, and apart where the vocabulary is padded."""
    generator = torch.Generator().manual_seed(5)
    hidden_ND, weight_VD = (torch.randn(n, D, dtype=torch.float64, generator=generator) for n in (5, V))
    teacher = kept_entries(torch.randn(5, num_tokens or V, dtype=torch.float64, generator=generator), [3, 1, 7, 2, 4])
    labels_N = torch.tensor([0, 3, 8, 1, 1])
    losses = LossConfig(logit_divergence=name, temperature=temperature)
    inputs = losses.head_inputs(labels_N, teacher, None, num_tokens=num_tokens)
    own, plain = ([x.clone().requires_grad_() for x in (hidden_ND, weight_VD)] for _ in range(2))
    terms = head_terms(inputs, {"supervised": 1.0, "logit": 0.25})
    sums = fused_head_losses(own[0], Head(weight_VD=own[1]), terms, chunk_bytes=8 * V * chunk)
    totals = tuple(term.total for term in sums)
    logits_NV = plain[0] @ plain[1].T
    expected = (
        torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum"),
        dense(name, logits_NV[:, :num_tokens], teacher, temperature, 0.5),
    )
    torch.testing.assert_close(totals, expected, rtol=1e-6, atol=1e-9)
    found = torch.autograd.grad(totals[0] + 0.25 * totals[1], own)
    reference = torch.autograd.grad(expected[0] + 0.25 * expected[1], plain)
    torch.testing.assert_close(found, reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_the_mass_of_the_support_does_not_count(name: Any) -> None:
    """Known and documented: a student may move mass out of the kept tokens freely."""
    teacher = kept_entries(torch.tensor([[4.0, 3.0, *[0.0] * (V - 2)]], dtype=torch.float64), [2])
    fled = torch.tensor([[-9.0, -10.0, *[0.0] * (V - 2)]], dtype=torch.float64)
    loss = logit_loss(fled, teacher.distribution(), divergence=named_divergence(name), on_support=True)
    assert loss.total.abs() < 1e-6


@pytest.mark.parametrize("name", get_args(LogitDivergence))
def test_an_unknown_tail_leaves_the_support(name: Any) -> None:
    problems = LossConfig(logit_divergence=name).problems_with("topk", "store s", "unknown")
    if name in SUPPORT:
        assert problems == []
        return
    (problem,) = problems
    if name == "bild":
        assert "set losses.bild.lead to 'teacher'" in problem
        return
    assert "\n" not in problem and f"losses.logit_divergence is '{name}'" in problem and "tail 'unknown'" in problem
    assert all(valid in problem for valid in SUPPORT)
    assert LossConfig(logit_divergence=name, logit=0.0).problems_with("topk", "store s", "unknown") == []


@pytest.mark.parametrize("kind", ["full", "hidden", "sampled"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_without_kept_tokens_have_no_support(name: Any, kind: str) -> None:
    (problem,) = LossConfig(logit_divergence=name).problems_with(kind, "store s")
    assert f"keeps logits '{kind}'" in problem and f"'{name.removeprefix('support_')}'" in problem


def test_a_known_tail_and_a_temperature() -> None:
    """The tempered distribution over the kept tokens needs no tail."""
    assert LossConfig(logit_divergence="support_js", temperature=2.0).problems_with("nucleus", "store s") == []
    (problem,) = LossConfig(logit_divergence="js", temperature=2.0).problems_with("nucleus", "store s")
    assert "losses.temperature is 2.0" in problem
