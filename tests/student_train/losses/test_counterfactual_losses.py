"""Properties of `effect` and `keep`; `test_objective_cases.py` has their golden values and gradients."""

import pytest
import torch
from torch import Tensor

from alignkd.student_train.losses.counterfactual import effect_loss, keep_loss
from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.vlm.families.family import Head


def on_support(logits_NV: Tensor, support: list[list[int]]) -> TruncatedDistribution:
    """The distribution on the tokens of each position and a tail, by plain sums."""
    probs, widest = logits_NV.softmax(-1), max(map(len, support))
    ids = torch.tensor([row + [0] * (widest - len(row)) for row in support])
    kept = torch.tensor([[True] * len(row) + [False] * (widest - len(row)) for row in support])
    rest = [1 - sum(probs[n, token].item() for token in row) for n, row in enumerate(support)]
    full = [len(row) == logits_NV.shape[1] for row in support]
    masses = [0.0 if is_full else mass for mass, is_full in zip(rest, full, strict=True)]
    tail = torch.tensor(masses, dtype=torch.float64).log()
    logprobs = probs.log().gather(1, ids).masked_fill(~kept, 0.0)
    return TruncatedDistribution(ids_NK=ids, logprobs_NK=logprobs, kept_NK=kept, tail_logmass_N=tail)


def random_passes(seed: int, positions: int = 40, vocab: int = 12) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [4 * torch.randn(positions, vocab, generator=generator, dtype=torch.float64) for _ in range(4)]


@pytest.mark.parametrize("entries", [1, 5, 12])
def test_both_lie_between_0_and_1_and_grow_with_the_support(entries: int) -> None:
    full, removed, student_full, student_removed = random_passes(entries)
    found = []
    for size in (entries, 12):
        support = [full[n].argsort(descending=True)[:size].tolist() for n in range(len(full))]
        teacher = [on_support(logits, support) for logits in (full, removed)]
        found.append((effect_loss(student_full, student_removed, *teacher), keep_loss(student_removed, teacher[0])))
    for part, whole in zip(*found, strict=True):
        assert ((part.parts >= 0) & (part.parts <= whole.parts + 1e-12) & (whole.parts <= 1)).all()


def test_a_full_support_is_the_whole_distribution() -> None:
    full, removed, student_full, student_removed = random_passes(0)
    every = [list(range(12))] * len(full)
    teacher = [on_support(logits, every) for logits in (full, removed)]
    effect = (full.softmax(-1) - removed.softmax(-1)) - (student_full.softmax(-1) - student_removed.softmax(-1))
    found = effect_loss(student_full, student_removed, *teacher)
    torch.testing.assert_close(found.parts, effect.abs().sum(-1) / 4)
    kept = (full.softmax(-1) - student_removed.softmax(-1)).abs().sum(-1) / 2
    torch.testing.assert_close(keep_loss(student_removed, teacher[0]).parts, kept)


def test_equal_models_and_a_blind_pair_have_no_effect_loss() -> None:
    full, removed, student, _ = random_passes(1)
    support = [full[n].argsort(descending=True)[:4].tolist() for n in range(len(full))]
    teacher = [on_support(logits, support) for logits in (full, removed)]
    assert effect_loss(full, removed, *teacher).total.item() == pytest.approx(0, abs=1e-12)
    assert effect_loss(student, student, teacher[0], teacher[0]).total.item() == 0
    assert effect_loss(student, student, *teacher).total.item() > 1


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 6, 100])
def test_pairs_are_never_divided_by_a_chunk(chunk_rows: int) -> None:
    """Chunks change nothing: the value and gradient of pairs are those of all rows at once."""
    generator = torch.Generator().manual_seed(3)
    states, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((10, 5), (12, 5)))
    states, weight = states.requires_grad_(), weight.requires_grad_()

    def distances(logits: Tensor, chunk: slice) -> Tensor:
        assert chunk.start % 2 == 0 and len(logits) % 2 == 0
        pairs = logits.softmax(-1).unflatten(0, (-1, 2))
        parts = (pairs[:, 0] - pairs[:, 1]).abs().sum(-1)
        return torch.stack([parts, torch.zeros_like(parts)], dim=1).flatten()

    (found,) = fused_head_losses(
        states,
        Head(weight_VD=weight),
        [WeightedTerm(term=distances, weight=1.0)],
        chunk_bytes=chunk_rows * 8 * 12,
        rows_of_position=2,
    )
    gradients = torch.autograd.grad(found.total, [states, weight])
    probs = (states @ weight.T).softmax(-1)
    expected = (probs[::2] - probs[1::2]).abs().sum()
    torch.testing.assert_close(found.total, expected)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, [states, weight]), strict=True):
        torch.testing.assert_close(gradient, other)
