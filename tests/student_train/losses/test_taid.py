"""TAID's loss: the dense formula in both forms, its ends t = 0 and t = 1, fused and not, and what is refused."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import FullTargets, RaggedEntries, TruncatedTargets
from alignkd.student_train.losses.fused_head import fused_head_losses
from alignkd.student_train.losses.logits.divergences.f_divergences import forward_kl
from alignkd.student_train.losses.logits.divergences.taid import BUCKETED, CROSS_ENTROPY, FULL, SHARE
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.logits.taid_schedule import TaidConfig
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head

V, D = 9, 4
shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
kept_counts = st.lists(st.integers(1, V), min_size=1, max_size=5)


def both_sides(num_positions: int, seed: int, *, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits of student (a leaf) and teacher, float64."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (
        torch.randn((num_positions, V), dtype=torch.float64, generator=generator) * spread for _ in range(2)
    )
    return student.requires_grad_(), teacher


def truncated(teacher_NV: Tensor, num_kept: list[int]) -> TruncatedDistribution:
    """The most probable tokens of each position; the tail is exact, -inf where every token is kept."""
    logprobs, order = teacher_NV.log_softmax(-1).sort(descending=True)
    widest = max(num_kept)
    kept = torch.arange(teacher_NV.shape[1]) < torch.tensor(num_kept)[:, None]
    return TruncatedDistribution(
        ids_NK=order.masked_fill(~kept, 0)[:, :widest],
        logprobs_NK=logprobs.masked_fill(~kept, 0.0)[:, :widest],
        kept_NK=kept[:, :widest],
        tail_logmass_N=logprobs.masked_fill(kept, -torch.inf).logsumexp(-1),
    )


def textbook(student_NV: Tensor, teacher_NV: Tensor, t: float, num_kept: list[int] | None) -> tuple[Tensor, float]:
    """KL of the powers' product, position by position on probabilities, and its cross-entropy."""
    total, cross = torch.zeros((), dtype=torch.float64), 0.0
    for place, (student, teacher) in enumerate(zip(student_NV, teacher_NV, strict=True)):
        q, p = student.softmax(0), teacher.softmax(0)
        if num_kept is not None and num_kept[place] < V:
            order = p.argsort(descending=True)
            kept, rest = order[: num_kept[place]], order[num_kept[place] :]
            q, p = (torch.cat([side[kept], side[rest].sum()[None]]) for side in (q, p))
        m = q.detach() ** (1 - t) * p**t
        m = m / m.sum()
        total = total + (m * (m / q).log()).sum()
        cross -= float((m * q.detach().log()).sum())
    return total, cross


def loss_of(student_NV: Tensor, teacher: Tensor | TruncatedDistribution, t: float) -> LossSum:
    divergence = BUCKETED if isinstance(teacher, TruncatedDistribution) else FULL
    return logit_loss(student_NV, teacher, divergence=divergence, step_values={SHARE: t})


@given(num_kept=kept_counts, seed=st.integers(0, 2**31), t=shares, bucketed=st.booleans())
def test_value_gradient_and_cross_entropy_are_those_of_the_formula(
    num_kept: list[int], seed: int, t: float, bucketed: bool
) -> None:
    student_NV, teacher_NV = both_sides(len(num_kept), seed)
    found = loss_of(student_NV, truncated(teacher_NV, num_kept) if bucketed else teacher_NV, t)
    expected, cross = textbook(student_NV, teacher_NV, t, num_kept if bucketed else None)
    torch.testing.assert_close(found.total, expected, rtol=1e-9, atol=1e-10)
    assert float(found.figures[CROSS_ENTROPY].sum()) == pytest.approx(cross, rel=1e-9)
    assert not found.figures[CROSS_ENTROPY].requires_grad
    gradients = [torch.autograd.grad(total, student_NV)[0] for total in (found.total, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
    assert (found.parts >= -1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_kept", [None, [2, 5, 9]])
def test_without_a_share_of_the_teacher_loss_and_gradient_are_0(dtype: torch.dtype, num_kept: Any) -> None:
    """To the last bit of the dtype in which it is computed."""
    student_NV, teacher_NV = (side.detach().to(dtype) for side in both_sides(3, 0, spread=20.0))
    student_NV.requires_grad_()
    found = loss_of(student_NV, teacher_NV if num_kept is None else truncated(teacher_NV, num_kept), 0.0)
    assert float(found.total.detach()) == 0.0
    (gradient,) = torch.autograd.grad(found.total, student_NV)
    assert not gradient.any()


@given(num_kept=kept_counts, seed=st.integers(0, 2**31), bucketed=st.booleans())
def test_the_teacher_alone_is_forward_kl(num_kept: list[int], seed: int, bucketed: bool) -> None:
    student_NV, teacher_NV = both_sides(len(num_kept), seed)
    teacher = truncated(teacher_NV, num_kept) if bucketed else teacher_NV
    losses = loss_of(student_NV, teacher, 1.0), logit_loss(student_NV, teacher, divergence=forward_kl)
    torch.testing.assert_close(losses[0].parts, losses[1].parts, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(loss.total, student_NV)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@given(seed=st.integers(0, 2**31), t=shares)
def test_with_every_token_kept_the_bucketed_form_is_the_full_one(seed: int, t: float) -> None:
    student_NV, teacher_NV = both_sides(3, seed)
    losses = loss_of(student_NV, teacher_NV, t), loss_of(student_NV, truncated(teacher_NV, [V, V, V]), t)
    torch.testing.assert_close(losses[1].parts, losses[0].parts, rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(loss.total, student_NV)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("student", "teacher", "full", "bucketed"),
    [
        # the tail's two tokens are apart, so the full mixture has no mass there
        ([0.9, 0.1, 0.0], [0.1, 0.0, 0.9], 0.105, 0.511),
        ([0.1, 0.9, 0.0], [0.5, 0.0, 0.5], 2.303, 0.092),
    ],
)
def test_the_bucketed_form_is_no_bound_of_the_full_one(
    student: list[float], teacher: list[float], full: float, bucketed: float
) -> None:
    """It may be larger or smaller; an f-divergence on the same outcomes is never larger. By hand, t = 1/2."""
    q, p = (torch.tensor([side], dtype=torch.float64).clamp(min=1e-30) for side in (student, teacher))
    kept = TruncatedDistribution(
        ids_NK=torch.tensor([[0]]),
        logprobs_NK=p[:, :1].log(),
        kept_NK=torch.tensor([[True]]),
        tail_logmass_N=p[:, 1:].sum(-1).log(),
    )
    found = [float(loss_of(q.log(), side, 0.5).total) for side in (p.log(), kept)]
    assert found == pytest.approx([full, bucketed], abs=1e-3)


@given(num_kept=kept_counts, seed=st.integers(0, 2**31), t=st.floats(0.01, 0.99))
def test_the_bucket_has_more_mass_than_its_tokens_in_the_full_mixture(num_kept: list[int], seed: int, t: float) -> None:
    student_NV, teacher_NV = both_sides(len(num_kept), seed)
    order = teacher_NV.argsort(descending=True)
    for place, kept in enumerate(num_kept):
        if kept == V:
            continue
        q, p = (side[place].detach().softmax(0)[order[place]] for side in (student_NV, teacher_NV))
        full = q ** (1 - t) * p**t
        bucket = q[kept:].sum() ** (1 - t) * p[kept:].sum() ** t
        assert bucket / (full[:kept].sum() + bucket) >= full[kept:].sum() / full.sum() - 1e-12


@pytest.mark.parametrize("t", [0.0, 0.4, 1.0])
def test_a_teacher_without_mass_in_its_tail(t: float) -> None:
    """Its tail is -inf although tokens are left: the mixture has no mass there either, but for t = 0."""
    student_NV, teacher_NV = both_sides(2, 5)
    teacher_NV[:, 3:] = -torch.inf
    teacher = truncated(teacher_NV, [3, 3])
    assert teacher.tail_logmass_N is not None and bool(teacher.tail_logmass_N.isneginf().all())
    found = loss_of(student_NV, teacher, t)
    (gradient,) = torch.autograd.grad(found.total, student_NV)
    assert found.total.isfinite() and gradient.isfinite().all() and found.figures[CROSS_ENTROPY].isfinite().all()
    if t:
        q = student_NV.detach().softmax(-1)
        torch.testing.assert_close(gradient[:, 3:], q[:, 3:])


def targets_of(form: str, teacher_NV: Tensor, num_kept: list[int]) -> FullTargets | TruncatedTargets:
    if form == "full":
        return FullTargets(logits=EncodedTensor.plain(teacher_NV))
    found = truncated(teacher_NV, num_kept)
    entries = RaggedEntries(
        ids_E=found.ids_NK[found.kept_NK].to(torch.uint32),
        values_E=found.logprobs_NK[found.kept_NK].float(),
        offsets=torch.tensor([0, *num_kept]).cumsum(0),
        widest=max(num_kept),
    )
    assert found.tail_logmass_N is not None
    return TruncatedTargets(entries=entries, tail_logmass_N=found.tail_logmass_N.float())


@pytest.mark.parametrize("form", ["full", "bucketed"])
@pytest.mark.parametrize("supervised", [0.0, 1.0])
@pytest.mark.parametrize("positions_at_once", [1, 2, 100])
@pytest.mark.parametrize("num_tokens", [None, V - 2])
def test_fused_with_the_head_it_is_autograd_over_all_logits(
    form: Any, supervised: float, positions_at_once: int, num_tokens: int | None
) -> None:
    """Sums, figures and the gradients of states and head; also where the student's vocabulary is padded."""
    num_kept, generator = [3, 1, 7, 2, 7], torch.Generator().manual_seed(3)
    _, teacher_NV = both_sides(5, 4)
    columns = V if num_tokens is None else num_tokens
    num_kept = [min(kept, columns) for kept in num_kept]
    leaves = [torch.randn(shape, generator=generator, requires_grad=True) for shape in ((5, D), (V, D))]
    labels_N = torch.tensor([0, 6, 3, 2, 2])
    losses = LossConfig(supervised=supervised, logit=0.5, logit_divergence="taid", taid=TaidConfig(form=form))
    teacher_Nn = teacher_NV[:, :columns].float()
    targets = targets_of(form, teacher_Nn, num_kept)
    inputs = losses.head_inputs(labels_N, targets, None, num_tokens=num_tokens, step_values={SHARE: 0.7})
    weights = losses.weights
    joint = head_terms(inputs, {name: weights[name] for name in ("supervised", "logit") if name in weights})
    *terms, figure = fused_head_losses(
        leaves[0], Head(weight_VD=leaves[1]), joint, chunk_bytes=4 * V * positions_at_once
    )
    assert len(terms) == len(joint.weights)
    logits_NV = leaves[0] @ leaves[1].T
    teacher = teacher_Nn if isinstance(targets, FullTargets) else targets.distribution()
    direct = loss_of(logits_NV[:, :num_tokens], teacher, 0.7)
    expected = [direct.total]
    if supervised:
        expected.insert(0, torch.nn.functional.cross_entropy(logits_NV, labels_N, reduction="sum"))
    torch.testing.assert_close([term.total for term in terms], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(figure.parts, direct.figures[CROSS_ENTROPY], rtol=1e-5, atol=1e-6)
    assert not figure.total.requires_grad
    found, reference = (
        torch.autograd.grad(sum(w * x for w, x in zip(joint.weights, totals, strict=True)), leaves)
        for totals in ([term.total for term in terms], expected)
    )
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_temperature_divides_the_logits_of_both_sides(temperature: float) -> None:
    student_NV, teacher_NV = both_sides(3, 2)
    found = logit_loss(student_NV, teacher_NV, divergence=FULL, temperature=temperature, step_values={SHARE: 0.6})
    expected, _ = textbook(student_NV / temperature, teacher_NV / temperature, 0.6, None)
    torch.testing.assert_close(found.total, expected * temperature**2)


def test_figures_of_parts_are_added_by_sample() -> None:
    student_NV, teacher_NV = both_sides(4, 2)
    found = loss_of(student_NV, teacher_NV, 0.5)
    by_sample = found.by_sample(torch.tensor([1, 0, 1, 1]), 3)
    parts = found.figures[CROSS_ENTROPY]
    torch.testing.assert_close(
        by_sample.figures[CROSS_ENTROPY], torch.stack([parts[1], parts[[0, 2, 3]].sum(), 0 * parts[0]])
    )


def refusals(kind: str, *, tail: str | None = None, **settings: Any) -> list[str]:
    return LossConfig(logit_divergence="taid", **settings).problems_with(kind, "store s", tail)


@pytest.mark.parametrize(
    ("kind", "form", "parts"),
    [
        ("topk", "full", ["losses.taid.form 'full' mixes all tokens", "set it to 'bucketed'", "no bound"]),
        ("nucleus", "full", ["logits 'nucleus'", "set it to 'bucketed'", "dump 'hidden' or 'full' logits"]),
        ("hidden", "bucketed", ["losses.taid.form 'bucketed'", "set it to 'full'"]),
        ("full", "bucketed", ["losses.taid.form 'bucketed'", "set it to 'full'"]),
        ("sampled", "full", ["logit_divergence is 'taid'", "estimate 'forward_kl' only"]),
        ("sampled", "bucketed", ["logit_divergence is 'taid'", "estimate 'forward_kl' only"]),
    ],
)
def test_stores_that_do_not_fit_are_refused(kind: str, form: Any, parts: list[str]) -> None:
    (problem,) = refusals(kind, taid=TaidConfig(form=form))
    assert "\n" not in problem and all(part in problem for part in parts), problem


@pytest.mark.parametrize("form", ["full", "bucketed"])
def test_an_unknown_tail_is_refused(form: Any) -> None:
    (problem,) = refusals("topk", tail="unknown", taid=TaidConfig(form=form))
    assert "tail 'unknown'" in problem and "support_forward_kl" in problem


def test_what_is_accepted() -> None:
    assert refusals("full") == refusals("hidden", temperature=2.0) == []
    assert refusals("topk", taid=TaidConfig(form="bucketed")) == []
    (problem,) = refusals("topk", taid=TaidConfig(form="bucketed"), temperature=2.0)
    assert "losses.temperature is 2.0" in problem
    with pytest.raises(ValueError, match=r"taid is .*, but logit_divergence 'forward_kl' does not use it"):
        LossConfig(logit_divergence="forward_kl", taid=TaidConfig())


def test_the_divergence_of_each_form() -> None:
    forms: dict[Any, RowDivergence] = {"full": FULL, "bucketed": BUCKETED}
    for form, divergence in forms.items():
        assert LossConfig(logit_divergence="taid", taid=TaidConfig(form=form)).divergence is divergence
    assert LossConfig(logit_divergence="taid").first_step_values == {SHARE: 0.4}
    assert LossConfig(logit_divergence="taid", logit=0.0).first_step_values == {} == LossConfig().first_step_values
