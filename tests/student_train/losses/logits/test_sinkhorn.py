"""The Sinkhorn distance: its definition with the kernel itself, properties of the plan, and the golden cases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cases.objectives.case import Case, not_computed, worst_relative_error
from cases.objectives.sinkhorn import evaluate
from hypothesis import given, settings
from hypothesis import strategies as st
from live_bytes import LiveBytes
from plain_divergences import plain_sinkhorn, truncated_rows
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.sinkhorn import full_cost, log_plan, sinkhorn, truncated_cost
from alignkd.student_train.losses.logits.divergences.tvd import tvd
from alignkd.student_train.losses.logits.logit_loss import logit_loss, per_outcome
from alignkd.student_train.losses.logits.rows import RowDivergence
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.position_groups import chunks_of_groups, groups_in, position_groups

GOLDEN = Path(__file__).parents[3] / "golden" / "objectives" / "sinkhorn"
V = 7


def logits(num: int, seed: int, vocab: int = V) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student_NV, teacher_NV = (2 * torch.randn(num, vocab, dtype=torch.float64, generator=generator) for _ in range(2))
    return student_NV, teacher_NV


def kept_tokens(teacher_NV: Tensor, num_kept: list[int]) -> TruncatedDistribution:
    """The most probable tokens of each position, padded, and the mass of the others."""
    sorted_NV, order_NV = teacher_NV.log_softmax(-1).sort(descending=True)
    kept_NV = torch.arange(teacher_NV.shape[1]) < torch.tensor(num_kept)[:, None]
    return TruncatedDistribution(
        ids_NK=order_NV.masked_fill(~kept_NV, 0),
        logprobs_NK=sorted_NV.masked_fill(~kept_NV, 0.0),
        kept_NK=kept_NV,
        tail_logmass_N=sorted_NV.masked_fill(kept_NV, -torch.inf).logsumexp(-1),
    )


def value_and_gradient(student_NV: Tensor, loss_of: Any) -> tuple[Tensor, Tensor]:
    leaf_NV = student_NV.clone().requires_grad_()
    total = loss_of(leaf_NV)
    return total.detach(), torch.autograd.grad(total, leaf_NV)[0]


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-8), (torch.float32, 1e-5)])
def test_golden_cases(number: int, dtype: torch.dtype, bound: float) -> None:
    case = Case.read(GOLDEN / str(number), dtype)
    found = evaluate(case)
    assert not not_computed(case, found)
    assert worst_relative_error(case, found) < bound


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([1.0, 2.0]),
    epsilon=st.sampled_from([0.1, 0.7]),
    iterations=st.sampled_from([1, 5]),
)
def test_full_logits_equal_the_kernel_form(
    sizes: list[int], seed: int, temperature: float, epsilon: float, iterations: int
) -> None:
    """Groups of several sizes in one call equal the groups alone, with exp(-W / epsilon) itself."""
    student_NV, teacher_NV = logits(sum(sizes), seed)
    found = value_and_gradient(
        student_NV,
        lambda x: (
            logit_loss(x, teacher_NV, divergence=sinkhorn(temperature, epsilon, iterations), groups=tuple(sizes)).total
        ),
    )
    expected = value_and_gradient(
        student_NV,
        lambda x: torch.stack(
            [
                plain_sinkhorn(q_gV, p_gV, temperature=temperature, epsilon=epsilon, iterations=iterations)
                for q_gV, p_gV in zip(x.split(sizes), teacher_NV.split(sizes), strict=True)
            ]
        ).sum(),
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(num_kept=st.lists(st.integers(1, V), min_size=1, max_size=5), seed=st.integers(0, 2**31), cut=st.integers(1, 4))
def test_truncated_logits_equal_the_kernel_form(num_kept: list[int], seed: int, cut: int) -> None:
    student_NV, teacher_NV = logits(len(num_kept), seed)
    tokens, sparse = truncated_rows(teacher_NV, num_kept), kept_tokens(teacher_NV, num_kept)
    groups = position_groups([len(num_kept)], cut)
    found = value_and_gradient(
        student_NV, lambda x: logit_loss(x, sparse, divergence=sinkhorn(1.0), groups=groups).total
    )
    ends = torch.tensor(groups).cumsum(0).tolist()

    def plain(student_NV: Tensor) -> Tensor:
        spans = [slice(end - size, end) for size, end in zip(groups, ends, strict=True)]
        return torch.stack([plain_sinkhorn(student_NV[g], teacher_NV[g], kept=tokens[g]) for g in spans]).sum()

    torch.testing.assert_close(found, value_and_gradient(student_NV, plain), rtol=1e-8, atol=1e-10)


def test_keeping_every_token_equals_full_logits() -> None:
    student_NV, teacher_NV = logits(5, 3)
    found = [
        value_and_gradient(
            student_NV, lambda x, p=teacher: logit_loss(x, p, divergence=sinkhorn(1.0), groups=(5,)).total
        )
        for teacher in (teacher_NV, kept_tokens(teacher_NV, [V] * 5))
    ]
    torch.testing.assert_close(*found)


def test_one_position_is_twice_the_total_variation() -> None:
    student_NV, teacher_NV = logits(4, 5)
    for teacher in (teacher_NV, kept_tokens(teacher_NV, [1, 3, 5, V])):
        alone = logit_loss(student_NV, teacher, divergence=sinkhorn(1.0, positions=1), groups=(1,) * 4)
        twice = logit_loss(student_NV, teacher, divergence=per_outcome(tvd))
        torch.testing.assert_close(alone.parts, 2 * twice.parts)


def test_a_truncated_cost_is_a_lower_bound_of_each_pair() -> None:
    student_NV, teacher_NV = logits(6, 9)
    full_NN = full_cost(student_NV.softmax(-1), teacher_NV.softmax(-1))
    cut_NN = truncated_cost(student_NV.softmax(-1), kept_tokens(teacher_NV, [1, 2, 3, 4, 5, V]))
    assert (cut_NN <= full_NN + 1e-12).all()
    torch.testing.assert_close(cut_NN[:, -1], full_NN[:, -1])


def test_columns_of_the_plan_sum_to_1_and_rows_nearly() -> None:
    student_NV, teacher_NV = logits(5, 1)
    cost_NN = full_cost(student_NV.softmax(-1), teacher_NV.softmax(-1))
    there_2N = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    plans = log_plan(torch.stack([cost_NN, cost_NN]), there_2N, 0.1, 20).exp()
    torch.testing.assert_close(plans[0].sum(0), torch.ones(5).double())
    torch.testing.assert_close(plans[1].sum(0), torch.tensor([1, 1, 1, 0, 0]).double())
    rows_error = (plans[0].sum(1) - 1).abs().max()
    assert 1e-12 < rows_error < 0.1


def test_a_small_epsilon_underflows_nothing() -> None:
    """The kernel form is 0 / 0 here: exp(-W / 1e-4) is 0."""
    student_NV, teacher_NV = (x.float() for x in logits(6, 4))
    value, gradient_NV = value_and_gradient(
        student_NV, lambda x: logit_loss(x, teacher_NV, divergence=sinkhorn(1.0, 1e-4), groups=(6,)).total
    )
    assert value.isfinite() and value > 0 and gradient_NV.isfinite().all()
    assert not plain_sinkhorn(student_NV, teacher_NV, epsilon=1e-4).isfinite()


def test_the_order_of_the_positions_of_a_group_does_not_matter() -> None:
    student_NV, teacher_NV = logits(6, 2)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    parts = [
        logit_loss(q_NV, p_NV, divergence=sinkhorn(), groups=(6,)).parts
        for q_NV, p_NV in ((student_NV, teacher_NV), (student_NV[order], teacher_NV[order]))
    ]
    torch.testing.assert_close(parts[0][order], parts[1])


def test_no_number_per_pair_and_token_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 x 48 x V numbers would be 18 MiB; the blocks of the gradient are bounded."""
    num, vocab = 48, 2048
    student_NV, teacher_NV = (x.float() for x in logits(num, 0, vocab))
    monkeypatch.setattr("alignkd.student_train.losses.logits.divergences.sinkhorn._BLOCK", 2 * num * vocab)
    with LiveBytes() as live:
        value_and_gradient(student_NV, lambda x: logit_loss(x, teacher_NV, divergence=sinkhorn(), groups=(num,)).total)
    assert live.peak < 16 * num * vocab * 4 < num * num * vocab * 4


@settings(max_examples=50, deadline=None)
@given(samples=st.lists(st.integers(0, 30), max_size=6), largest=st.integers(1, 9), fitting=st.integers(0, 40))
def test_groups_and_chunks(samples: list[int], largest: int, fitting: int) -> None:
    """Groups stay within samples and are as few and as equal as possible; chunks hold whole groups."""
    groups = position_groups(samples, largest)
    ends = torch.tensor([0, *groups]).cumsum(0).tolist()
    assert {*torch.tensor([0, *samples]).cumsum(0).tolist()} <= {*ends}
    for sample in filter(None, samples):
        own = position_groups([sample], largest)
        assert sum(own) == sample and len(own) == -(-sample // largest) and max(own) - min(own) <= 1
    assert groups == tuple(size for sample in samples for size in position_groups([sample], largest))
    chunks = chunks_of_groups(groups, fitting)
    assert [chunk.start for chunk in chunks] + [sum(groups)] == [0] * (not chunks) + [0] * bool(chunks) + [
        chunk.stop for chunk in chunks
    ]
    assert tuple(size for chunk in chunks for size in groups_in(groups, chunk)) == groups
    assert all(chunk.stop - chunk.start <= fitting or len(groups_in(groups, chunk)) == 1 for chunk in chunks)


def test_the_settings_reach_the_divergence() -> None:
    found: RowDivergence = sinkhorn(2.0, positions=5)
    assert found.group_positions == 5 and found.truncated is None and found.whole_student is None
    assert sinkhorn(1.0).whole_student is not None
