"""Losses fused with the output head against dense float64 formulas: value, gradient, memory."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from live_bytes import LiveBytes
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignkd.student_train.losses.fused_head import HeadTerm, WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.divergences.f_divergences import MIXED, named_divergence
from alignkd.student_train.losses.logits.logit_loss import logit_loss, teacher_logits
from alignkd.student_train.losses.logits.outcomes import outcomes
from alignkd.student_train.losses.logits.sampled_logit import SampledDistribution, sampled_logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.vlm.families.family import Head

N, V, D = 4, 7, 3
NUM_KEPT = {"topk": [3] * N, "nucleus": [1, V, 4, 2]}
DIVERGENCES: list[Any] = ["reverse_kl", "forward_kl", "js", "skewed_reverse_kl", "skewed_forward_kl"]
KINDS = [("full", 1.0), ("full", 2.5), ("hidden", 1.0), ("hidden", 2.5), ("topk", 1.0), ("nucleus", 1.0)]
CASES = [(name, *kind) for name in DIVERGENCES for kind in KINDS] + [("forward_kl", "sampled", 1.0)]
MIXTURE = 0.3
WEIGHTS = (1.0, 0.25)


class Problem:
    """A student and a teacher in float64, and what a store keeps of the teacher."""

    def __init__(self, name: Any, kind: str, temperature: float) -> None:
        generator = torch.Generator().manual_seed(7)
        self.hidden_ND, self.head_VD, states_ND, teacher_head_VD = (
            torch.randn(shape, dtype=torch.float64, generator=generator) for shape in [(N, D), (V, D)] * 2
        )
        self.labels_N = torch.randint(V, (N,), generator=generator)
        self.name, self.kind, self.temperature = name, kind, temperature
        self.mixture = MIXTURE if name in MIXED else None
        self.states_ND, self.teacher_head_VD = states_ND, teacher_head_VD
        self.teacher_NV = states_ND @ teacher_head_VD.T
        self.order_NV = self.teacher_NV.argsort(descending=True)

    def dense(self, hidden_ND: Tensor, head_VD: Tensor) -> list[Tensor]:
        """Cross-entropy and divergence from plain probabilities, outcome by outcome."""
        logits_NV = hidden_ND @ head_VD.T
        cross_entropy = -logits_NV.softmax(-1)[range(N), self.labels_N].log().sum()
        divergence = torch.zeros((), dtype=torch.float64)
        for n, (student_V, teacher_V) in enumerate(zip(logits_NV, self.teacher_NV, strict=True)):
            keep, order_V = NUM_KEPT.get(self.kind, [V] * N)[n], self.order_NV[n]
            outcomes = [*order_V[:keep].split(1), *([order_V[keep:]] if keep < V else [])]
            p, q = (
                torch.stack([(logits_V / self.temperature).softmax(-1)[tokens].sum() for tokens in outcomes])
                for logits_V in (teacher_V, student_V)
            )
            divergence = divergence + by_definition(self.name, p, q) * self.temperature**2
        return [cross_entropy, divergence]

    def logit_term(self) -> HeadTerm:
        settings: Any = {"divergence": named_divergence(self.name, self.mixture), "temperature": self.temperature}
        logprobs_NV = self.teacher_NV.log_softmax(-1)
        if self.kind == "full":
            return lambda x, chunk: logit_loss(x, self.teacher_NV[chunk], **settings).parts
        if self.kind == "hidden":
            return lambda x, chunk: (
                logit_loss(
                    x, teacher_logits(self.states_ND[chunk], Head(weight_VD=self.teacher_head_VD)), **settings
                ).parts
            )
        if self.kind == "sampled":  # as many draws as it takes for their shares to be the probabilities
            ids_NV, entropy_N = torch.arange(V).repeat(N, 1), -(logprobs_NV.exp() * logprobs_NV).sum(-1)
            draws = SampledDistribution(ids_NK=ids_NV, weights_NK=logprobs_NV.exp(), entropy_N=entropy_N)
            return lambda x, chunk: sampled_logit_loss(x, draws[chunk]).parts
        sparse = self._truncated(logprobs_NV.gather(1, self.order_NV))
        return lambda x, chunk: logit_loss(x, sparse[chunk], **settings).parts

    def _truncated(self, sorted_NV: Tensor) -> TruncatedDistribution:
        num_kept_N = torch.tensor(NUM_KEPT[self.kind])
        kept_NV = torch.arange(V) < num_kept_N[:, None]
        widest = int(num_kept_N.max())
        return TruncatedDistribution(
            ids_NK=self.order_NV.masked_fill(~kept_NV, 0)[:, :widest],
            logprobs_NK=sorted_NV.masked_fill(~kept_NV, 0.0)[:, :widest],
            kept_NK=kept_NV[:, :widest],
            tail_logmass_N=sorted_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1),
        )

    def fused(self, hidden_ND: Tensor, head_VD: Tensor, *, chunk: int) -> tuple[Tensor, ...]:
        terms = [supervised(self.labels_N), self.logit_term()]
        weighted = [WeightedTerm(term=term, weight=weight) for term, weight in zip(terms, WEIGHTS, strict=True)]
        head = Head(weight_VD=head_VD)
        return fused_totals(hidden_ND, head, weighted, chunk_bytes=chunk * V * head_VD.element_size())


def by_definition(name: str, p: Tensor, q: Tensor) -> Tensor:
    """Textbook formulas on probabilities."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return (a * (a / b).log()).sum()

    mixed = MIXTURE * p + (1 - MIXTURE) * q
    return {
        "reverse_kl": lambda: kl(q, p),
        "forward_kl": lambda: kl(p, q),
        "js": lambda: MIXTURE * kl(p, mixed) + (1 - MIXTURE) * kl(q, mixed),
        "skewed_reverse_kl": lambda: kl(q, MIXTURE * q + (1 - MIXTURE) * p),
        "skewed_forward_kl": lambda: kl(p, mixed),
    }[name]()


def supervised(labels_N: Tensor) -> HeadTerm:
    return lambda logits_nV, chunk: supervised_loss(logits_nV, labels_N[chunk]).parts


def fused_totals(*inputs: Any, chunk_bytes: int) -> tuple[Tensor, ...]:
    return tuple(loss.total for loss in fused_head_losses(*inputs, chunk_bytes=chunk_bytes))


def weighted_sum(totals: Any) -> Tensor:
    return torch.stack([weight * total for weight, total in zip(WEIGHTS, totals, strict=True)]).sum()


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_value_and_gradient_equal_the_dense_formula(case: Any) -> None:
    problem = Problem(*case)
    dense_leaves = leaves(problem.hidden_ND, problem.head_VD)
    expected = problem.dense(*dense_leaves)
    gradients = torch.autograd.grad(weighted_sum(expected) * 3e4, dense_leaves)
    for chunk in (1, 3, N, N + 5):
        own = leaves(problem.hidden_ND, problem.head_VD)
        totals = problem.fused(*own, chunk=chunk)
        torch.testing.assert_close(list(totals), expected, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(weighted_sum(totals) * 3e4, own)  # the common factor that a loss scale is
        torch.testing.assert_close(found, gradients, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}-{case[2]}")
def test_gradcheck(case: Any) -> None:
    problem = Problem(*case)
    own = leaves(problem.hidden_ND, problem.head_VD)
    assert torch.autograd.gradcheck(lambda h, w: weighted_sum(problem.fused(h, w, chunk=3)), own)


@pytest.mark.parametrize("num", [1, 5])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_logits_and_a_teacher_without_tail_mass_stay_finite(name: Any, num: int) -> None:
    """Mass 0 for tokens that the store did not keep: forward KL of an impossible outcome is 0, not NaN."""
    divergence = named_divergence(name)
    logits_NV = torch.randn(num, V, requires_grad=True)
    assert logit_loss(logits_NV, logits_NV.detach(), divergence=divergence).total.abs() < 1e-6
    ids_NK, kept_NK = torch.zeros(num, 1, dtype=torch.int64), torch.ones(num, 1, dtype=torch.bool)
    sure = TruncatedDistribution(
        ids_NK=ids_NK, logprobs_NK=torch.zeros(num, 1), kept_NK=kept_NK, tail_logmass_N=torch.full((num,), -torch.inf)
    )
    total = logit_loss(logits_NV, sure, divergence=divergence).total
    assert torch.autograd.grad(total, logits_NV)[0].isfinite().all()
    if name == "forward_kl":
        torch.testing.assert_close(total, -logits_NV.log_softmax(-1)[:, 0].sum())
    if name == "reverse_kl":
        assert total > 1e6  # truly infinite
    else:
        assert total < 10 * num


@pytest.mark.parametrize("name", DIVERGENCES)
def test_merging_outcomes_never_raises_a_divergence(name: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(500, 12, dtype=torch.float64, generator=generator) * 3 for _ in range(2))
    divergence = named_divergence(name)
    student, teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    previous = divergence(student, teacher).sum(-1)
    for width in range(11, 0, -1):
        student, teacher = (
            torch.cat([x[:, : width - 1], x[:, width - 1 :].logsumexp(-1, True)], 1) for x in (student, teacher)
        )
        merged = divergence(student, teacher).sum(-1)
        assert (merged <= previous + 1e-12).all() and (merged >= -1e-12).all()
        previous = merged


def test_jensen_shannon_is_symmetric_and_bounded_and_its_limits_are_the_divergences() -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(50, 9, dtype=torch.float64, generator=generator).log_softmax(-1) for _ in range(2))

    def total(name: Any, mixture: float | None = None, *, swap: bool = False) -> Tensor:
        sides = (teacher, student) if swap else (student, teacher)
        return named_divergence(name, mixture)(*sides).sum(-1)

    torch.testing.assert_close(total("js"), total("js", swap=True))
    assert (total("js") <= math.log(2)).all()
    torch.testing.assert_close(total("js", 1e-7) / 1e-7, total("forward_kl"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(total("js", 1 - 1e-7) / 1e-7, total("reverse_kl"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(total("skewed_forward_kl", 1e-9), total("forward_kl"), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(total("skewed_reverse_kl", 1e-9), total("reverse_kl"), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sample_id", ["pt-0", "ft-1", "ft-2"])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_the_unfused_losses_on_golden_logits(sample_id: str, name: Any, golden_tensors: Any) -> None:
    """The states are the logits and the head is the identity."""
    tensors, divergence = golden_tensors(sample_id), named_divergence(name)
    student_NV, teacher_NV, labels_N = (tensors[k] for k in ("student.logits", "teacher.logits", "supervised_labels"))
    plain_NV, hidden_NV = leaves(student_NV, student_NV)
    plain = [supervised_loss(plain_NV, labels_N).total, logit_loss(plain_NV, teacher_NV, divergence=divergence).total]
    terms = [supervised(labels_N), lambda x, chunk: logit_loss(x, teacher_NV[chunk], divergence=divergence).parts]
    fused = fused_totals(
        hidden_NV,
        Head(weight_VD=torch.eye(student_NV.shape[1])),
        [WeightedTerm(term=term, weight=weight) for term, weight in zip(terms, WEIGHTS, strict=True)],
        chunk_bytes=5 * 4 * student_NV.shape[1],
    )
    torch.testing.assert_close(list(fused), plain, rtol=1e-6, atol=1e-7)
    found, expected = (
        torch.autograd.grad(weighted_sum(x), leaf)[0] for x, leaf in ((fused, hidden_NV), (plain, plain_NV))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def cross_entropy_of(hidden_ND: Tensor, head_VD: Tensor, labels_N: Tensor, chunk: int = 3) -> Tensor:
    term = WeightedTerm(term=supervised(labels_N), weight=1.0)
    width = max(4, head_VD.element_size()) * len(head_VD)
    return fused_totals(hidden_ND, Head(weight_VD=head_VD), [term], chunk_bytes=chunk * width)[0]


@pytest.mark.parametrize("chunk", [1, 3, N + 5])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.4, None), (1.0, 1.5), (3.0, 0.8)])
def test_bias_scale_and_soft_cap_of_a_head(scale: float, softcap: float | None, chunk: int) -> None:
    """Value and gradient are those of the formula, through whatever a model does after its matrix."""
    problem = Problem("js", "full", 1.0)
    generator = torch.Generator().manual_seed(3)
    bias_V = torch.randn(V, dtype=torch.float64, generator=generator)

    def fused(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        head = Head(weight_VD=weight_VD, bias_V=bias_V, scale=scale, softcap=softcap)
        terms = [supervised(problem.labels_N), problem.logit_term()]
        weighted = [WeightedTerm(term=term, weight=weight) for term, weight in zip(terms, WEIGHTS, strict=True)]
        return weighted_sum(fused_totals(hidden_ND, head, weighted, chunk_bytes=chunk * V * 8))

    def plain(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor) -> Tensor:
        logits_NV = scale * (hidden_ND @ weight_VD.T + bias_V)
        if softcap is not None:
            logits_NV = softcap * (logits_NV / softcap).tanh()
        terms = [supervised(problem.labels_N), problem.logit_term()]
        return weighted_sum([term(logits_NV, slice(None)) for term in terms])

    own, reference = (leaves(problem.hidden_ND, problem.head_VD, bias_V) for _ in range(2))
    found, expected = fused(*own), plain(*reference)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(found * 3e4, own), torch.autograd.grad(expected * 3e4, reference), rtol=1e-9, atol=1e-9
    )
    assert torch.autograd.gradcheck(fused, own)


def test_no_position_gives_zeros_to_both_parameters() -> None:
    """ZeRO-2 wants a gradient of every parameter from every batch."""
    hidden_ND, head_VD = leaves(torch.zeros(0, D), torch.randn(V, D))
    total = cross_entropy_of(hidden_ND, head_VD, torch.zeros(0, dtype=torch.int64))
    total.backward()
    assert total.item() == 0.0
    assert hidden_ND.grad is not None and hidden_ND.grad.shape == (0, D)
    assert head_VD.grad is not None and torch.equal(head_VD.grad, torch.zeros(V, D))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 2.0**10])
def test_half_precision_stays_within_its_rounding(dtype: torch.dtype, bound: float, size: float) -> None:
    """Against float64 from the same rounded inputs, for small, usual and large states."""
    torch.manual_seed(0)
    hidden_ND, head_VD = (torch.randn(40, 16) * size).to(dtype), (torch.randn(500, 16) / 4).to(dtype)
    labels_N = torch.randint(500, (40,))
    half, exact = leaves(hidden_ND, head_VD), leaves(hidden_ND.double(), head_VD.double())
    total, expected = (cross_entropy_of(*own, labels_N, chunk=7) for own in (half, exact))
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(expected.item(), rel=bound)
    scale = 1.0 if size > 1 else 64.0
    found, right = (torch.autograd.grad(value * scale, own) for value, own in ((total, half), (expected, exact)))
    for gradient, true, parameter in zip(found, right, half, strict=True):
        assert gradient.dtype == parameter.dtype == dtype
        assert (gradient.double() - true).norm() <= 5 * bound * true.norm()


def test_float16_gradients_below_its_smallest_number_are_kept() -> None:
    """Every slope but the label's is about 1e-9; a plain cast to float16 would give 0."""
    head_VD = torch.zeros(300, 2, dtype=torch.float16)
    head_VD[0] = 10.0
    hidden_ND = torch.ones(2, 2, dtype=torch.float16).requires_grad_()
    head_VD.requires_grad_()
    total = cross_entropy_of(hidden_ND, head_VD, torch.zeros(2, dtype=torch.int64))
    (gradient_VD,) = torch.autograd.grad(total * 2.0**24, head_VD)
    expected = 2 * 2.0**24 * math.exp(-20)
    torch.testing.assert_close(gradient_VD[1:].float(), torch.full((299, 2), expected), rtol=2e-2, atol=0.0)


def test_a_frozen_side_gets_no_gradient_and_evaluation_keeps_none() -> None:
    hidden_ND, head_VD, labels_N = torch.randn(5, D), torch.randn(V, D), torch.randint(V, (5,))
    trained_ND, trained_VD = leaves(hidden_ND, head_VD)
    both = torch.autograd.grad(cross_entropy_of(trained_ND, trained_VD, labels_N), (trained_ND, trained_VD))
    (states,) = torch.autograd.grad(cross_entropy_of(trained_ND, head_VD, labels_N), trained_ND)
    (weight,) = torch.autograd.grad(cross_entropy_of(hidden_ND, trained_VD, labels_N), trained_VD)
    assert torch.equal(states, both[0]) and torch.equal(weight, both[1])
    with torch.no_grad():
        silent = cross_entropy_of(trained_ND, trained_VD, labels_N)
    assert not silent.requires_grad and not cross_entropy_of(hidden_ND, head_VD, labels_N).requires_grad
    torch.testing.assert_close(silent, cross_entropy_of(trained_ND, trained_VD, labels_N).detach())


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_gradient_checkpointing(reentrant: bool) -> None:
    """Its hooks run the checkpointed function again for whatever is saved in it."""
    labels_N, calls = torch.randint(V, (5,)), 0
    plain, checkpointed = (
        leaves(torch.arange(15.0).view(5, 3).sin(), torch.arange(21.0).view(7, 3).cos()) for _ in "ab"
    )

    def total(hidden_ND: Tensor, head_VD: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return cross_entropy_of(hidden_ND.tanh(), head_VD, labels_N)

    total(*plain).backward()
    checkpoint(total, *checkpointed, use_reentrant=reentrant).backward()
    assert calls == 3
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("wrong", [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0)])
def test_gradients_that_were_not_announced_are_refused(wrong: tuple[float, float]) -> None:
    problem = Problem("js", "full", 1.0)
    cross_entropy, divergence = problem.fused(*leaves(problem.hidden_ND, problem.head_VD), chunk=2)
    with pytest.raises(ValueError, match=r"not proportional to the weights \[1\.0, 0\.25\] with which"):
        (wrong[0] * cross_entropy + wrong[1] * divergence).backward()


def peak_bytes(work: Callable[[], Tensor]) -> int:
    with LiveBytes() as live:
        work().backward()
    return live.peak


@pytest.mark.parametrize("name", DIVERGENCES)
def test_peak_memory_does_not_grow_with_the_positions(name: Any) -> None:
    """Counted: every storage that torch makes between the states and their gradients, temporaries included."""
    vocab, width, chunk = 1000, 8, 16
    chunk_bytes = chunk * vocab * 4

    def peak(num: int, *, fused: bool) -> int:
        hidden_ND, head_VD = leaves(torch.randn(num, width), torch.randn(vocab, width))
        teacher_NV, labels_N, divergence = torch.randn(num, vocab), torch.randint(vocab, (num,)), named_divergence(name)
        term: HeadTerm = lambda x, part: logit_loss(x, teacher_NV[part], divergence=divergence).parts  # noqa: E731
        terms = [WeightedTerm(term=t, weight=w) for t, w in zip([supervised(labels_N), term], WEIGHTS, strict=True)]

        def plain() -> list[Tensor]:
            logits_NV = hidden_ND @ head_VD.T
            return [t.term(logits_NV, slice(None)).sum() for t in terms]

        return peak_bytes(
            lambda: weighted_sum(
                fused_totals(hidden_ND, Head(weight_VD=head_VD), terms, chunk_bytes=chunk_bytes) if fused else plain()
            )
        )

    few, many = peak(64, fused=True), peak(512, fused=True)
    gradient_ND = (512 - 64) * width * 4
    assert many - few <= 3 * gradient_ND  # the gradient of the states, in float32 and in their dtype
    assert many <= 16 * chunk_bytes + 3 * vocab * width * 4 + 3 * 512 * width * 4
    assert peak(512, fused=False) > 4 * many


def test_outcomes_take_one_tensor_of_the_logits_size() -> None:
    """Beside the logits themselves, which it overwrites, only what has the size of the entries."""
    vocab, positions, entries = 20_000, 50, 8
    logits_NV = torch.randn(positions, vocab, requires_grad=True)
    ids_NK = torch.randint(vocab, (positions, entries)).sort(-1).values
    kept_NK = torch.cat([torch.ones(positions, 1, dtype=torch.bool), ids_NK.diff(dim=-1) > 0], dim=1)

    def peak(*, overwrite: bool) -> int:
        with LiveBytes() as live:
            found = outcomes(logits_NV, labels_N=ids_NK[:, 0], ids_NK=ids_NK, kept_NK=kept_NK, overwrite=overwrite)
            assert found.label_logprobs_N is not None and found.logprobs_NK is not None
            total = found.label_logprobs_N.sum() + found.logprobs_NK.sum() + found.tail_logmass_N.sum()
            torch.autograd.grad(total, logits_NV)
        return live.peak

    assert logits_NV.nbytes < peak(overwrite=False) < 2.1 * logits_NV.nbytes
    assert peak(overwrite=True) < 0.1 * logits_NV.nbytes


def test_the_meter_counts_what_lives() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(1000)
        for _ in range(5):
            (kept + 1).sum()
        assert live.now == 4000
    assert 8000 <= live.peak <= 8100
