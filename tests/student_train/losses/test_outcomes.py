"""Log-probabilities of a few tokens and the mass of the rest: against log-softmax and autograd, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from alignkd.student_train.data.targets import LogitTargets, RaggedEntries, SampledTargets, TruncatedTargets
from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.outcomes import Outcomes, outcomes
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.objective.logits.head_terms import head_terms
from alignkd.student_train.objective.logits.logit_terms import logit_term
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.families.family import Head

N, V = 4, 7
# padded slots point to a kept token, to one that is not kept and to none at all; the last position keeps every token
IDS = torch.tensor([[3, 0, 5, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0, 0], [6, 4, 0, 0, 0, 0, 0], [6, 5, 4, 3, 2, 1, 0]])
KEPT = torch.arange(V) < torch.tensor([3, 1, 2, 7])[:, None]
LABELS = torch.tensor([5, 6, 0, 1])  # kept, not kept, pointed to by padding, of a position without a tail


@pytest.fixture
def logits() -> Tensor:
    return (torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3).requires_grad_()


def by_autograd(logits_NV: Tensor) -> Outcomes:
    logprobs_NV = logits_NV.log_softmax(-1)
    tails = []
    for n in range(N):
        rest = [token for token in range(V) if token not in IDS[n][KEPT[n]].tolist()]
        tails.append(logprobs_NV[n, rest].logsumexp(0) if rest else logprobs_NV.new_tensor(-torch.inf))
    return Outcomes(
        label_logprobs_N=logprobs_NV[range(N), LABELS],
        logprobs_NK=logprobs_NV.gather(1, IDS),
        tail_logmass_N=torch.stack(tails),
        vocab_size=V,
    )


def weighed(found: Outcomes) -> Tensor:
    """Every outcome with a weight of its own; a tail that is not there is left out."""
    assert found.label_logprobs_N is not None and found.logprobs_NK is not None
    parts = (found.label_logprobs_N, found.logprobs_NK, found.tail_logmass_N[:3])
    return torch.stack([(part * (1 + torch.arange(part.numel()).view(part.shape)).sin()).sum() for part in parts]).sum()


@pytest.mark.parametrize("overwrite", [False, True])
def test_values_and_gradients_are_those_of_log_softmax(logits: Tensor, overwrite: bool) -> None:
    expected = by_autograd(logits)
    (slopes,) = torch.autograd.grad(weighed(expected), logits)
    given = logits.detach().clone().requires_grad_()
    found = outcomes(given, labels_N=LABELS, ids_NK=IDS, kept_NK=KEPT, overwrite=overwrite)
    for name in ("label_logprobs_N", "logprobs_NK", "tail_logmass_N"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    (own,) = torch.autograd.grad(weighed(found), given)
    torch.testing.assert_close(own, slopes, rtol=1e-12, atol=1e-12)
    assert (own.data_ptr() == given.data_ptr()) == overwrite
    assert torch.equal(given, logits) != overwrite


@pytest.mark.parametrize("asked", [{"labels_N": LABELS}, {"ids_NK": IDS}, {"ids_NK": IDS, "kept_NK": KEPT}])
def test_gradcheck_of_what_is_asked_for(logits: Tensor, asked: dict[str, Tensor]) -> None:
    def values(x: Tensor) -> list[Tensor]:
        found = outcomes(x, **asked)
        tail = [found.tail_logmass_N[:3]] if "kept_NK" in asked else []
        return [y for y in (found.label_logprobs_N, found.logprobs_NK, *tail) if y is not None]

    assert torch.autograd.gradcheck(values, (logits,))


def test_a_tail_below_the_smallest_number_keeps_its_mass_and_slopes() -> None:
    """exp(-200) is 0 in float32: neither 1 - sum(kept) nor a sum of probabilities knows of it."""
    logits_1V = torch.tensor([[200.0, 0.0, 1.0]], requires_grad=True)
    ids, kept = torch.tensor([[0]]), torch.tensor([[True]])
    tail = outcomes(logits_1V, ids_NK=ids, kept_NK=kept).tail_logmass_N
    torch.testing.assert_close(tail, torch.tensor([0.0, 1.0]).logsumexp(0)[None] - 200)
    (slopes,) = torch.autograd.grad(tail.sum(), logits_1V)
    within = torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(slopes, torch.tensor([[-1.0, *within.tolist()]]))


def test_what_is_no_number_stays_none() -> None:
    """A step whose loss is not finite is skipped, so it must show."""
    for wrong in (torch.nan, torch.inf):
        found = outcomes(torch.tensor([[wrong, 1.0, 2.0]]), labels_N=torch.tensor([1])).label_logprobs_N
        assert found is not None and not found.isfinite().any()


def targets_of(kind: str) -> LogitTargets | None:
    """Entries of six positions in a vocabulary of 50,000, whose upper half has no place in int16."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(1)
    counts_N = torch.tensor([3, 1, 40, 7, 2, 9])
    ids_E = torch.cat([torch.randperm(50_000, generator=generator)[:count] for count in counts_N.tolist()])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts_N.cumsum(0)])
    if kind == "sampled":
        draws_E = torch.randint(1, 9, (len(ids_E),), generator=generator).to(torch.uint16)
        entries = RaggedEntries(ids_E=ids_E.to(torch.uint16), values_E=draws_E, offsets=offsets, widest=40)
        return SampledTargets(entries=entries, entropy_N=torch.rand(6, generator=generator), num_draws=200)
    logprobs_E = (-5 - torch.rand(len(ids_E), generator=generator)).half()
    dtype = torch.uint16 if kind == "nucleus" else torch.uint32
    entries = RaggedEntries(ids_E=ids_E.to(dtype), values_E=logprobs_E, offsets=offsets, widest=40)
    return TruncatedTargets(entries=entries, tail_logmass_N=-torch.rand(6, generator=generator))


@pytest.mark.parametrize("positions_at_once", [1, 4, 10])
@pytest.mark.parametrize("kind", ["nucleus", "nucleus-32-bit", "sampled", "none"])
@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_terms_that_share_a_pass_are_those_that_do_not(
    kind: str, weights: tuple[float, float], positions_at_once: int
) -> None:
    supervised, logit = weights
    if kind == "none" and logit:
        return
    losses = LossConfig(
        supervised=supervised, logit=logit, logit_divergence="forward_kl" if kind == "sampled" else "reverse_kl"
    )
    generator, targets = torch.Generator().manual_seed(2), targets_of(kind)
    leaves = [torch.randn(shape, generator=generator).requires_grad_() for shape in ((6, 5), (50_000, 5))]
    labels_N = torch.randint(50_000, (6,), generator=generator)
    inputs = losses.head_inputs(labels_N, targets, None)
    apart: list[Any] = []
    if supervised:
        apart.append((lambda x, chunk: supervised_loss(x, labels_N[chunk]).parts, supervised))
    if logit:
        assert targets is not None
        apart.append((logit_term(inputs), logit))
    terms = [WeightedTerm(term=term, weight=weight) for term, weight in apart]
    chunk_bytes = 4 * 50_000 * positions_at_once
    joint = head_terms(inputs, losses.weights)
    head = Head(weight_VD=leaves[1])
    losses_of = [fused_head_losses(leaves[0], head, x, chunk_bytes=chunk_bytes) for x in (joint, terms)]
    for own, alone in zip(*losses_of, strict=True):
        torch.testing.assert_close(own.parts, alone.parts, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.total, own.parts.sum(), rtol=1e-6, atol=0)
    found, expected = ([loss.total for loss in losses] for losses in losses_of)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    gradients = (
        torch.autograd.grad(sum(w * t for w, t in zip(joint.weights, totals, strict=True)), leaves)
        for totals in (found, expected)
    )
    for own, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(own, reference, rtol=1e-4, atol=1e-6)
