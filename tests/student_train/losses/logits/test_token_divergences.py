"""TVD, cosine of probabilities, OFA, AKL and BiLD: their definitions, values by hand, and the authors' golden cases."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cases.objectives.case import Case, not_computed, worst_relative_error
from cases.objectives.token_divergences import evaluate, settings_of
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_divergences import plain_total, truncated_rows
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.akl import akl, head_mask
from alignkd.student_train.losses.logits.divergences.bild import bild
from alignkd.student_train.losses.logits.divergences.cosine import cosine_probs
from alignkd.student_train.losses.logits.divergences.ofa import ofa
from alignkd.student_train.losses.logits.divergences.tvd import tvd
from alignkd.student_train.losses.logits.logit_loss import logit_loss, per_outcome
from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution

GOLDEN = Path(__file__).parents[3] / "golden" / "objectives" / "token_divergences"
V = 9
# Settings, and whether a truncated teacher can serve them.
CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("tvd", {}, True),
    ("cosine_probs", {}, True),
    ("ofa", {"gamma": 1.0}, True),
    ("ofa", {"gamma": 1.7}, True),
    ("akl", {"head": 0.5}, True),
    ("akl", {"head": 0.9}, True),
    ("bild", {"k": 4, "temperature": 2.0, "lead": "teacher"}, True),
    ("bild", {"k": 20, "temperature": 1.0, "lead": "both"}, False),
]
IDS = [f"{name}-{'-'.join(map(str, values.values()))}" for name, values, _ in CASES]


def made(name: str, values: dict[str, Any]) -> RowDivergence:
    if name == "bild":
        return bild(values["k"], values["temperature"], student_led=values["lead"] == "both")
    makers: dict[str, Any] = {"tvd": lambda: per_outcome(tvd), "cosine_probs": cosine_probs, "ofa": ofa, "akl": akl}
    return makers[name](**values)  # type: ignore[no-any-return]


def drawn(num: int, seed: int, vocab: int = V) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of student and teacher in float64, and labels."""
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (2 * torch.randn(num, vocab, dtype=torch.float64, generator=generator) for _ in range(2))
    return student_NV, teacher_NV, torch.randint(vocab, (num,), generator=generator)


def truncated(teacher_NV: Tensor, kept: list[list[int]]) -> TruncatedDistribution:
    """What a store keeps of logits: these tokens and the mass of the rest, padded."""
    logprobs_NV, width = teacher_NV.log_softmax(-1), max(map(len, kept))
    masked_NV = logprobs_NV.clone()
    for n, tokens in enumerate(kept):
        masked_NV[n, tokens] = -torch.inf
    return TruncatedDistribution(
        ids_NK=torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in kept]),
        logprobs_NK=torch.stack(
            [
                torch.cat([row_V[tokens], torch.zeros(width - len(tokens), dtype=row_V.dtype)])
                for row_V, tokens in zip(logprobs_NV, kept, strict=True)
            ]
        ),
        kept_NK=torch.tensor([[place < len(tokens) for place in range(width)] for tokens in kept]),
        tail_logmass_N=masked_NV.logsumexp(-1),
    )


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_golden_cases(number: int, dtype: torch.dtype, bound: float) -> None:
    case = Case.read(GOLDEN / str(number), dtype)
    found = evaluate(case)
    assert not not_computed(case, found)
    assert worst_relative_error(case, found) < bound


def test_numbers_are_read_from_the_keys_of_a_case() -> None:
    assert settings_of("ofa.gamma=1.25.full_sum") == {"gamma": 1.25}
    assert settings_of("bild.k=5.T=3.0.teacher_led_sum") == {"k": 5.0, "T": 3.0}
    assert settings_of("full.T=0.5.eps=1e-3.iters=20") == {"T": 0.5, "eps": 1e-3, "iters": 20.0}
    assert settings_of("tvd.full_sum") == {}


@settings(max_examples=25, deadline=None)
@given(num_kept=st.lists(st.integers(1, V), min_size=1, max_size=4), seed=st.integers(0, 2**31))
@pytest.mark.parametrize(("name", "values", "buckets"), CASES, ids=IDS)
def test_value_and_gradient_equal_the_definition(
    name: str, values: dict[str, Any], buckets: bool, num_kept: list[int], seed: int
) -> None:
    student_NV, teacher_NV, labels_N = drawn(len(num_kept), seed)
    for kept in (None, truncated_rows(teacher_NV, num_kept)) if buckets else (None,):
        teacher = teacher_NV if kept is None else truncated(teacher_NV, kept)
        own, plain = (student_NV.clone().requires_grad_() for _ in range(2))
        found = logit_loss(own, teacher, divergence=made(name, values), labels_N=labels_N)
        expected = plain_total(name, values, plain, teacher_NV, labels_N, kept)
        torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(value, leaf)[0] for value, leaf in ((found.total, own), (expected, plain))]
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize(("name", "values", "buckets"), CASES, ids=IDS)
def test_keeping_every_token_in_any_order_equals_full_logits(name: str, values: dict[str, Any], buckets: bool) -> None:
    if not buckets:
        return
    student_NV, teacher_NV, labels_N = drawn(5, 3)
    shuffled = [torch.randperm(V, generator=torch.Generator().manual_seed(n)).tolist() for n in range(5)]
    pairs = []
    for teacher in (teacher_NV, truncated(teacher_NV, shuffled)):
        leaf_NV = student_NV.clone().requires_grad_()
        loss = logit_loss(leaf_NV, teacher, divergence=made(name, values), labels_N=labels_N)
        pairs.append((loss.parts, *torch.autograd.grad(loss.total, leaf_NV)))
    torch.testing.assert_close(pairs[0], pairs[1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "values", "buckets"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_sides(name: str, values: dict[str, Any], buckets: bool, dtype: torch.dtype) -> None:
    """Value and gradient are 0; OFA gives the entropy at gamma 1."""
    _, teacher_NV, labels_N = drawn(6, 8)
    for kept in (None, truncated_rows(teacher_NV, [1, 2, 3, 4, 8, 9])) if buckets else (None,):
        teacher = teacher_NV.to(dtype) if kept is None else truncated(teacher_NV.to(dtype), kept)
        student_NV = teacher_NV.to(dtype, copy=True).requires_grad_()
        loss = logit_loss(student_NV, teacher, divergence=made(name, values), labels_N=labels_N)
        (gradient_NV,) = torch.autograd.grad(loss.total, student_NV)
        assert gradient_NV.isfinite().all()
        if name != "ofa":
            # the truncated norm of the teacher is not that of the student
            bound = 1e-5 if name != "cosine_probs" or kept is None else 2.0
            assert loss.parts.abs().max() < bound
            assert name in ("tvd", "cosine_probs") or gradient_NV.abs().max() < 1e-5
        elif values["gamma"] == 1.0 and kept is None:
            logprobs_NV = teacher_NV.log_softmax(-1)
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(-1)
            torch.testing.assert_close(loss.parts.double(), entropy_N, rtol=1e-5, atol=1e-6)
            assert gradient_NV.abs().max() < 1e-5


def test_two_tokens_by_hand() -> None:
    """p = (0.8, 0.2), q = (0.5, 0.5), label 0."""
    student_NV, teacher_NV = torch.tensor([[0.5, 0.5]]).double().log(), torch.tensor([[0.8, 0.2]]).double().log()

    def value(divergence: RowDivergence) -> float:
        return logit_loss(student_NV, teacher_NV, divergence=divergence, labels_N=torch.tensor([0])).total.item()

    forward, reverse = 0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(2.5)
    assert value(per_outcome(tvd)) == pytest.approx(0.3)
    assert value(cosine_probs()) == pytest.approx(1 - 0.5 / math.sqrt(0.68 * 0.5))
    assert value(ofa(1.0)) == pytest.approx(math.log(2))
    assert value(ofa(2.0)) == pytest.approx((1.8**2 - 1 + 0.2) * math.log(2))
    assert value(akl(0.5)) == pytest.approx((forward + reverse) / 2)  # the head is token 0; both gaps are 0.3
    assert value(akl(0.9)) == pytest.approx(forward)  # both tokens are the head
    assert value(bild(2)) == 0.0


def test_two_tokens_of_bild_have_one_difference_whose_share_is_1() -> None:
    student_NV, teacher_NV, labels_N = drawn(4, 5)
    for teacher in (teacher_NV, truncated(teacher_NV, truncated_rows(teacher_NV, [2, 1, 2, 7]))):
        leaf_NV = student_NV.clone().requires_grad_()
        loss = logit_loss(leaf_NV, teacher, divergence=bild(2, student_led=teacher is teacher_NV), labels_N=labels_N)
        assert loss.total == 0.0
        assert not torch.autograd.grad(loss.total, leaf_NV)[0].any()


@settings(max_examples=20, deadline=None)
@given(num_kept=st.lists(st.integers(1, V), min_size=3, max_size=3), seed=st.integers(0, 2**31))
def test_what_truncation_does(num_kept: list[int], seed: int) -> None:
    """TVD and OFA are lower; the cosine is off by at most 2 |p_tail| / |p|; BiLD is the same with k tokens."""
    student_NV, teacher_NV, labels_N = drawn(3, seed)
    kept = truncated_rows(teacher_NV, num_kept)
    sparse = truncated(teacher_NV, kept)

    def both(divergence: RowDivergence) -> tuple[Tensor, Tensor]:
        full, cut = (
            logit_loss(student_NV, teacher, divergence=divergence, labels_N=labels_N).parts
            for teacher in (teacher_NV, sparse)
        )
        return full, cut

    full_N, cut_N = both(per_outcome(tvd))
    assert (cut_N <= full_N + 1e-12).all() and (full_N <= 1 + 1e-12).all()
    full_N, cut_N = both(ofa(1.5))
    assert (cut_N <= full_N + 1e-12).all()
    full_N, cut_N = both(cosine_probs())
    probs_NV = teacher_NV.softmax(-1)
    tails_NV = torch.stack(
        [p_V.index_fill(0, torch.tensor(tokens), 0.0) for p_V, tokens in zip(probs_NV, kept, strict=True)]
    )
    assert ((cut_N - full_N).abs() <= 2 * tails_NV.norm(dim=-1) / probs_NV.norm(dim=-1) + 1e-12).all()
    full_N, cut_N = both(bild(3, 2.5, student_led=False))
    exact_N = torch.tensor(num_kept) >= 3
    torch.testing.assert_close(cut_N[exact_N], full_N[exact_N])


def test_bild_needs_no_tail_and_no_normaliser() -> None:
    """Differences cancel whatever the stored log-probabilities sum to."""
    student_NV, teacher_NV, _ = drawn(3, 4)
    known = truncated(teacher_NV, truncated_rows(teacher_NV, [5, 6, 7]))
    unknown = TruncatedDistribution(
        ids_NK=known.ids_NK, logprobs_NK=known.logprobs_NK + 0.7, kept_NK=known.kept_NK, tail_logmass_N=None
    )
    found = [logit_loss(student_NV, x, divergence=bild(5, student_led=False)).parts for x in (known, unknown)]
    torch.testing.assert_close(*found)


def test_a_label_that_is_not_kept_is_a_part_of_the_bucket() -> None:
    student_NV, teacher_NV, _ = drawn(2, 6)
    kept = truncated_rows(teacher_NV, [3, 4])
    labels_N = teacher_NV.argmin(-1)
    found = logit_loss(student_NV, truncated(teacher_NV, kept), divergence=ofa(2.0), labels_N=labels_N).total
    expected = plain_total("ofa", {"gamma": 2.0}, student_NV, teacher_NV, labels_N, kept)
    plain = plain_total("ofa", {"gamma": 1.0}, student_NV, teacher_NV, labels_N, kept)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, plain)


def test_agreement_of_one_outcome_has_no_gradient_in_tvd() -> None:
    logprobs_NV = torch.tensor([[0.5, 0.3, 0.2]]).double().log()
    student_NV = torch.tensor([[0.5, 0.2, 0.3]]).double().log().requires_grad_()
    (gradient_NV,) = torch.autograd.grad(tvd(student_NV, logprobs_NV).sum(), student_NV)
    torch.testing.assert_close(gradient_NV, torch.tensor([[0.0, -0.1, 0.15]]).double())


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kept", [[[0, 3]], [[*range(V)]], [[5]]])
def test_squared_mass_of_the_tail(kept: list[list[int]], overwrite: bool) -> None:
    """Value and gradient, also beside the other outcomes and where there is no tail."""
    student_NV, teacher_NV, labels_N = drawn(1, 2)
    sparse, tail = truncated(teacher_NV, kept), [token for token in range(V) if token not in kept[0]]

    def found(logits_NV: Tensor, *, plain: bool) -> Tensor:
        logprobs_NV = logits_NV.log_softmax(-1)
        if plain:
            squares_N = (2 * logprobs_NV[:, tail]).logsumexp(-1)
            label_N, kept_N = logprobs_NV[:, labels_N[0]], logprobs_NV[:, kept[0]].sum(-1)
        else:
            seen = outcomes(
                logits_NV * 1.0,
                labels_N=labels_N,
                ids_NK=sparse.ids_NK,
                kept_NK=sparse.kept_NK,
                squares=True,
                overwrite=overwrite,
            )
            assert seen.tail_log_squares_N is not None
            assert seen.label_logprobs_N is not None and seen.logprobs_NK is not None
            squares_N, label_N, kept_N = seen.tail_log_squares_N, seen.label_logprobs_N, seen.logprobs_NK.sum(-1)
        return (0.7 * squares_N.exp() + 0.3 * label_N + 0.2 * kept_N).sum()

    leaves = [student_NV.clone().requires_grad_() for _ in range(2)]
    values = [found(leaf, plain=plain) for leaf, plain in zip(leaves, (False, True), strict=True)]
    torch.testing.assert_close(*values)
    found_NV, expected_NV = (torch.autograd.grad(*pair)[0] for pair in zip(values, leaves, strict=True))
    torch.testing.assert_close(found_NV, expected_NV)


@pytest.mark.parametrize("scale", [1e-4, 50.0])
@pytest.mark.parametrize(("name", "values", "buckets"), CASES, ids=IDS)
def test_flat_and_sure_models_stay_finite_in_float32(
    name: str, values: dict[str, Any], buckets: bool, scale: float
) -> None:
    student_NV, teacher_NV, labels_N = drawn(7, 11)
    teacher_NV = (scale * teacher_NV).float()
    kept = truncated_rows(teacher_NV, [1, 2, 3, 4, 5, 8, 9])
    for teacher in (teacher_NV, truncated(teacher_NV, kept)) if buckets else (teacher_NV,):
        leaf_NV = (scale * student_NV).float().requires_grad_()
        loss = logit_loss(leaf_NV, teacher, divergence=made(name, values), labels_N=labels_N)
        assert loss.parts.isfinite().all() and torch.autograd.grad(loss.total, leaf_NV)[0].isfinite().all()


def test_the_head_of_akl() -> None:
    """Tokens for which all more probable ones have less than the share; equal masses go together."""
    masses_NV = torch.tensor([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25], [0.2, 0.2, 0.2, 0.4], [1.0, 0, 0, 0]])
    expected = {
        0.4: [[1], [0, 1, 2, 3], [3], [0]],
        0.5: [[1], [0, 1, 2, 3], [0, 1, 2, 3], [0]],
        0.7: [[1, 3], [0, 1, 2, 3], [0, 1, 2, 3], [0]],
    }
    for head, tokens in expected.items():
        assert [row_V.nonzero().flatten().tolist() for row_V in head_mask(masses_NV, head)] == tokens
