"""What must hold for every input: padding is invisible, a batch is the sum of its samples, gradients are right."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alignkd.student_train.data.targets import RaggedEntries, TruncatedTargets
from alignkd.student_train.losses.attention.squared_error import attention_loss
from alignkd.student_train.losses.logits.divergences.f_divergences import Divergence, forward_kl, reverse_kl
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.supervised import supervised_loss
from alignkd.student_train.losses.vision.embeddings import vision_top_loss

DIVERGENCES: list[Divergence] = [reverse_kl, forward_kl]


def truncate(teacher_logits_NV: Tensor, num_kept: list[int]) -> TruncatedDistribution:
    """The `num_kept[n]` most probable entries of each position and the exact mass of the rest."""
    logprobs_NV = teacher_logits_NV.double().log_softmax(-1)
    ids, logprobs, tails = [], [], []
    for row, keep in zip(logprobs_NV, num_kept, strict=True):
        order = row.argsort(descending=True)
        ids.append(order[:keep].numpy())
        logprobs.append(row[order[:keep]].numpy())
        tails.append(float(row[order[keep:]].logsumexp(0)) if keep < len(row) else -np.inf)
    entries = RaggedEntries(
        ids_E=torch.from_numpy(np.concatenate(ids).astype(np.uint16)),
        values_E=torch.from_numpy(np.concatenate(logprobs).astype(np.float32)),
        offsets=torch.tensor([0, *itertools.accumulate(num_kept)]),
        widest=max(num_kept),
    )
    return TruncatedTargets(entries=entries, tail_logmass_N=torch.tensor(tails, dtype=torch.float32)).distribution()


def bucketed_by_hand(student_NV: Tensor, teacher_NV: Tensor, num_kept: list[int], divergence: Divergence) -> Tensor:
    """KL on kept tokens plus one bucket, written with dense probabilities."""
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher, keep in zip(student_NV.softmax(-1), teacher_NV.softmax(-1), num_kept, strict=True):
        order = teacher.argsort(descending=True)
        groups = [order[rank : rank + 1] for rank in range(keep)] + ([order[keep:]] if keep < len(order) else [])
        for group in groups:
            q, p = student[group].sum(), teacher[group].sum()
            total = total + (q * (q / p).log() if divergence is reverse_kl else p * (p / q).log())
    return total


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_keeping_every_token_equals_full(divergence: Divergence) -> None:
    torch.manual_seed(0)
    student_NV, teacher_NV = torch.randn(5, 40, requires_grad=True), torch.randn(5, 40) * 3
    full = logit_loss(student_NV, teacher_NV, divergence=divergence)
    kept = logit_loss(student_NV, truncate(teacher_NV, [40] * 5), divergence=divergence)
    torch.testing.assert_close(kept.total, full.total, rtol=1e-6, atol=1e-6)
    (full_gradient,) = torch.autograd.grad(full.total, student_NV)
    (kept_gradient,) = torch.autograd.grad(kept.total, student_NV)
    torch.testing.assert_close(kept_gradient, full_gradient, rtol=1e-5, atol=1e-6)


@given(num_kept=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 2**31))
@settings(max_examples=60)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bucket_equals_dense_formula(divergence: Divergence, num_kept: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(num_kept), 12)
    student_NV = torch.randn(shape, dtype=torch.float64, generator=generator, requires_grad=True)
    teacher_NV = torch.randn(shape, dtype=torch.float64, generator=generator) * 2
    loss = logit_loss(student_NV, truncate(teacher_NV, num_kept), divergence=divergence)
    dense = bucketed_by_hand(student_NV, teacher_NV, num_kept, divergence)
    # Stored entries are float32, the oracle is float64 throughout.
    torch.testing.assert_close(loss.total, dense, rtol=1e-5, atol=1e-6)
    gradient, expected = (torch.autograd.grad(value, student_NV)[0] for value in (loss.total, dense))
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    assert loss.total.item() > -1e-6


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("num_kept", [[3, 1], [8, 2], [8, 8]])
def test_bucket_gradcheck(divergence: Divergence, num_kept: list[int]) -> None:
    torch.manual_seed(1)
    teacher = truncate(torch.randn(2, 8), num_kept)
    student_NV = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: logit_loss(x, teacher, divergence=divergence).total, (student_NV,))


def test_padded_slot_does_not_hide_token_zero() -> None:
    """Padding is stored as id 0; the tail of a narrow row must still count the student's mass on token 0."""
    teacher_NV = torch.tensor([[-5.0, 1.0, 2.0, 3.0]] * 2)
    both = logit_loss(torch.zeros(2, 4), truncate(teacher_NV, [1, 3]))
    alone = [logit_loss(torch.zeros(1, 4), truncate(teacher_NV[:1], [keep])).total for keep in (1, 3)]
    torch.testing.assert_close(both.total, alone[0] + alone[1])


def test_equal_distributions_have_no_divergence() -> None:
    logits_NV = torch.randn(4, 30)
    for divergence in DIVERGENCES:
        assert logit_loss(logits_NV, truncate(logits_NV, [1, 5, 29, 30]), divergence=divergence).total.abs() < 1e-5
        assert logit_loss(logits_NV, logits_NV, divergence=divergence).total.abs() < 1e-5


def test_fleeing_the_support_is_punished() -> None:
    """The failure of partial sums: moving all student mass out of the kept tokens must cost, not pay."""
    teacher = truncate(torch.tensor([[4.0, 3.0, 0.0, 0.0, 0.0, 0.0]]), [2])
    near = torch.tensor([[3.0, 2.0, 0.0, 0.0, 0.0, 0.0]])
    fled = torch.tensor([[-9.0, -9.0, 0.0, 0.0, 0.0, 0.0]])
    for divergence in DIVERGENCES:
        assert (
            logit_loss(fled, teacher, divergence=divergence).total
            > 5 * logit_loss(near, teacher, divergence=divergence).total
        )


def test_temperature() -> None:
    torch.manual_seed(2)
    student_NV, teacher_NV = torch.randn(3, 20), torch.randn(3, 20)
    warm = logit_loss(student_NV, teacher_NV, temperature=2.0)
    by_hand = logit_loss(student_NV / 2, teacher_NV / 2).total * 4
    torch.testing.assert_close(warm.total, by_hand)
    with pytest.raises(ValueError, match=r"temperature 2\.0 needs full logits"):
        logit_loss(student_NV, truncate(teacher_NV, [3, 3, 3]), temperature=2.0)


def test_half_precision_is_summed_in_float32() -> None:
    logits_NV = (torch.randn(300, 50) * 3).bfloat16()
    labels_N = torch.randint(50, (300,))
    assert supervised_loss(logits_NV, labels_N).total.dtype == torch.float32
    torch.testing.assert_close(
        supervised_loss(logits_NV, labels_N).total, supervised_loss(logits_NV.float(), labels_N).total
    )


@given(
    sizes=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), min_size=1, max_size=4),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    garbage=st.sampled_from([0.0, 1e30, float("inf"), float("nan")]),
)
@settings(max_examples=60)
def test_attention_batch_is_the_sum_of_its_samples(
    sizes: list[tuple[int, int]], padding: tuple[int, int], garbage: float
) -> None:
    """Whatever stands in the padding, in value and in gradient."""
    torch.manual_seed(3)
    rows, cols = ([size[axis] for size in sizes] for axis in (0, 1))
    shape = (len(sizes), 2, max(rows) + padding[0], max(cols) + padding[1])
    teacher, student = torch.full(shape, garbage), torch.full(shape, garbage)
    parts = []
    for sample, (num_rows, num_cols) in enumerate(sizes):
        teacher[sample, :, :num_rows, :num_cols] = torch.randn(2, num_rows, num_cols)
        student[sample, :, :num_rows, :num_cols] = torch.randn(2, num_rows, num_cols)
        part = (slice(sample, sample + 1), slice(None), slice(num_rows), slice(num_cols))
        parts.append(attention_loss(teacher[part], student[part], [num_rows], [num_cols]))
    student.requires_grad_()
    batch = attention_loss(teacher, student, rows, cols)
    torch.testing.assert_close(batch, torch.cat(parts))
    (gradient,) = torch.autograd.grad(batch.sum(), student)
    assert gradient.isfinite().all()


def test_focus_takes_the_named_tokens() -> None:
    student_PD, teacher_KD, index_K = torch.randn(18, 4), torch.randn(6, 4), torch.tensor([8, 0, 4, 10, 11, 16])
    loss = vision_top_loss(teacher_KD, student_PD, index_K)
    by_hand = sum((teacher_KD[k] - student_PD[int(index_K[k])]).square().sum() for k in range(6))
    torch.testing.assert_close(loss.total, torch.as_tensor(by_hand))
    assert loss.count == 6 * 4
