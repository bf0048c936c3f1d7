"""Sinkhorn distance between the positions of a group (SinKD, arXiv 2402.17110).

With q_i the student's distribution at position i of a group, p_j the teacher's at position j, both at temperature T:

    W_ij = |q_i - p_j|_1        P = exp(-W / e), rows and columns normalised in turn        loss = sum of P_ij W_ij

The value of position j is its column's share, the sum over i of P_ij W_ij. The columns of P sum to 1, because they are
normalised last; the rows only nearly. The plan P has a gradient, too. The iterations are on potentials f and g,
log P = -W / e + f + g, so that a small e underflows nothing. The loss is not 0 for q = p: the plan is spread out. A
group of one position has the loss |q - p|_1, twice the total variation distance.

A truncated teacher gives W_ij on its own outcomes at j, kept tokens and bucket, at T = 1: a lower bound of each W_ij.

Shape letters: n positions of a chunk, g of a group, G groups, m positions of the largest group.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkd.student_train.losses.logits.rows import NO_MASS, FullRows, RowDivergence, WholeStudentRows
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution

# Numbers of the largest temporary tensor of the gradient of a cost: 64 MiB of float32.
_BLOCK = 1 << 24


def sinkhorn(
    temperature: float = 2.0, epsilon: float = 0.1, iterations: int = 20, positions: int = 64
) -> RowDivergence:
    """The row divergence; `positions` is the largest size of a group."""
    plan = partial(sinkhorn_values, epsilon=epsilon, iterations=iterations)
    return RowDivergence(
        full=partial(full_values, temperature=temperature, values_of=plan),
        truncated=None,
        whole_student=partial(truncated_values, values_of=plan) if temperature == 1.0 else None,
        group_positions=positions,
    )


def full_values(rows: FullRows, temperature: float, values_of: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """From all outcomes, [n]."""
    student_nV, teacher_nV = (
        (x_nV if temperature == 1.0 else (x_nV / temperature).log_softmax(dim=-1)).exp()
        for x_nV in (rows.student_NV, rows.teacher_NV)
    )
    sides = zip(student_nV.split(rows.groups), teacher_nV.split(rows.groups), strict=True)
    return values_of([full_cost(*side) for side in sides])


def truncated_values(rows: WholeStudentRows, values_of: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
    """From the student's whole rows and the teacher's kept tokens and bucket, [n]."""
    costs, start = [], 0
    for size in rows.groups:
        group = slice(start, start + size)
        costs.append(truncated_cost(rows.student_NV[group].exp(), rows.teacher[group]))
        start += size
    return values_of(costs)


def full_cost(student_gV: Tensor, teacher_gV: Tensor) -> Tensor:
    """W [g, g] from probabilities; differentiable once, along the student."""
    cost_gg: Tensor = _L1.apply(student_gV, teacher_gV)
    return cost_gg


def truncated_cost(student_gV: Tensor, teacher: TruncatedDistribution) -> Tensor:
    """W [g, g] from the student's probabilities and the teacher's outcomes at each position."""
    assert teacher.tail_logmass_N is not None
    kept_gK, (num, width) = teacher.kept_NK, teacher.ids_NK.shape
    # student i at the entries of teacher j
    seen_ggK = student_gV.index_select(1, teacher.ids_NK.flatten()).reshape(-1, num, width)
    seen_ggK = seen_ggK.masked_fill(~kept_gK, 0.0)
    teacher_gK = teacher.logprobs_NK.to(student_gV.dtype).exp().masked_fill(~kept_gK, 0.0)
    kept_gg: Tensor = (seen_ggK - teacher_gK).abs().sum(dim=-1)
    has_tail_g = kept_gK.sum(dim=-1) < student_gV.shape[1]
    tail_gg = (1 - seen_ggK.sum(dim=-1) - teacher.tail_logmass_N.to(student_gV.dtype).exp()).abs()
    return kept_gg + torch.where(has_tail_g, tail_gg, 0.0)


def sinkhorn_values(costs: Sequence[Tensor], epsilon: float, iterations: int) -> Tensor:
    """The value of each position [n] from the costs [g, g] of each group; all groups are iterated together."""
    sizes, largest = [len(cost) for cost in costs], max(len(cost) for cost in costs)
    cost_Gmm = torch.stack([_padded(cost, largest) for cost in costs])
    there_Gm = torch.stack([_padded(torch.ones_like(cost[0]), largest) for cost in costs]) > 0
    log_plan_Gmm = log_plan(cost_Gmm, there_Gm, epsilon, iterations)
    columns_Gm = (log_plan_Gmm.exp() * cost_Gmm).sum(dim=1).to(cost_Gmm.dtype)
    return torch.cat([column_m[:size] for column_m, size in zip(columns_Gm, sizes, strict=True)])


def log_plan(cost_Gmm: Tensor, there_Gm: Tensor, epsilon: float, iterations: int) -> Tensor:
    """log P [G, m, m], float64, after `iterations` times rows and columns; `NO_MASS` where a position is not there.

    A plan has few numbers. In float64 a small epsilon does not amplify the rounding of the costs any further.
    """
    cost_Gmm = cost_Gmm.double()
    pairs_Gmm = there_Gm[:, :, None] & there_Gm[:, None, :]
    kernel_Gmm = (-cost_Gmm / epsilon).masked_fill(~pairs_Gmm, NO_MASS)
    columns_G1m = torch.zeros_like(cost_Gmm[:, :1])
    for _ in range(iterations):
        rows_Gm1 = -(kernel_Gmm + columns_G1m).logsumexp(dim=2, keepdim=True)
        rows_Gm1 = rows_Gm1.masked_fill(~there_Gm[:, :, None], 0.0)
        columns_G1m = -(kernel_Gmm + rows_Gm1).logsumexp(dim=1, keepdim=True)
        columns_G1m = columns_G1m.masked_fill(~there_Gm[:, None, :], 0.0)
    return (kernel_Gmm + rows_Gm1 + columns_G1m).masked_fill(~pairs_Gmm, NO_MASS)


def _padded(values: Tensor, size: int) -> Tensor:
    """Zeros after the end of every dimension."""
    return torch.nn.functional.pad(values, [0, size - len(values)] * values.ndim)


class _L1(torch.autograd.Function):
    """Sums of absolute differences of all pairs of rows; neither direction holds a number per pair and token."""

    @staticmethod
    def forward(ctx: Any, student_gV: Tensor, teacher_gV: Tensor) -> Tensor:
        ctx.save_for_backward(student_gV, teacher_gV)
        cost_gg: Tensor = torch.cdist(student_gV, teacher_gV, p=1.0)
        return cost_gg

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_gg: Tensor) -> tuple[Tensor, None]:
        student_gV, teacher_gV = ctx.saved_tensors
        grad_gV = torch.zeros_like(student_gV)
        # torch's own gradient of cdist keeps [g, g, V] on a GPU, and its sums have no fixed order there
        step = max(1, _BLOCK // student_gV.numel())
        for start in range(0, len(teacher_gV), step):
            block = slice(start, start + step)
            signs = (student_gV[:, None] - teacher_gV[None, block]).sign_()
            grad_gV += torch.einsum("ij,ijv->iv", grad_gg[:, block], signs)
        return grad_gV, None
