"""Adaptive KL (arXiv 2404.02657): forward and reverse KL, weighted by where the two sides differ.

The head is the teacher's most probable tokens: those for which all more probable tokens have less than a share of the
mass. With g_head = sum of |p - q| over the head, and g_tail over all others:

    (g_head KL(p, q) + g_tail KL(q, p)) / (g_head + g_tail)

The weights have no gradient. On a truncated teacher both divergences and g_tail are those of kept tokens and a bucket,
which belongs to the tail: each divergence is a lower bound, their weighted mean is not a bound. The head is the same
wherever the kept tokens are the most probable ones and their mass reaches the share; where it does not, the head is all
kept tokens.
"""

from functools import partial

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.divergences.f_divergences import forward_kl, reverse_kl
from alignkd.student_train.losses.logits.rows import (
    BucketedRows,
    FullRows,
    RowDivergence,
    TruncatedRows,
    bucketed_rows,
)

# A probability of 1 as an integer.
_WHOLE = 1 << 52


def akl(head: float = 0.5) -> RowDivergence:
    """The row divergence; `head` is the share of the mass, above 0 and below 1."""
    return RowDivergence(full=partial(full_values, head=head), truncated=partial(truncated_values, head=head))


def full_values(rows: FullRows, head: float) -> Tensor:
    """From all outcomes, [n]."""
    in_head_NV = head_mask(rows.teacher_NV.exp(), head)
    everything = torch.ones_like(in_head_NV)
    return _weighted(
        BucketedRows(student_NO=rows.student_NV, teacher_NO=rows.teacher_NV, there_NO=everything), in_head_NV
    )


def truncated_values(rows: TruncatedRows, head: float) -> Tensor:
    """From the kept tokens and the bucket, [n]."""
    sides = bucketed_rows(rows)
    masses_NK = sides.teacher_NO[:, :-1].exp().masked_fill(~sides.there_NO[:, :-1], 0.0)
    in_head_NK = head_mask(masses_NK, head) & rows.teacher.kept_NK
    return _weighted(sides, torch.cat([in_head_NK, torch.zeros_like(in_head_NK[:, :1])], dim=-1))


def head_mask(masses_NO: Tensor, head: float) -> Tensor:
    """bool: the outcomes for which those of larger mass have less than `head` in total; equal masses go together."""
    sorted_NO = masses_NO.sort(dim=-1, descending=True).values
    # sums of integers do not depend on their order: the boundary is the same in every run, on every device
    whole_NO = (sorted_NO * _WHOLE).long()
    before_NO = whole_NO.cumsum(dim=-1) - whole_NO
    last_N1 = (before_NO < head * _WHOLE).sum(dim=-1, keepdim=True) - 1
    return masses_NO >= sorted_NO.gather(1, last_N1)


def _weighted(sides: BucketedRows, in_head_NO: Tensor) -> Tensor:
    forward_N = sides.total(forward_kl(sides.student_NO, sides.teacher_NO))
    reverse_N = sides.total(reverse_kl(sides.student_NO, sides.teacher_NO))
    gaps_NO = (sides.teacher_NO.exp() - sides.student_NO.detach().exp()).abs()
    head_N, both_N = sides.total(gaps_NO * in_head_NO), sides.total(gaps_NO)
    # where both sides agree everywhere, both divergences are 0 and any weight will do
    share_N = head_N / both_N.clamp(min=torch.finfo(both_N.dtype).tiny)
    return share_N * forward_N + (1 - share_N) * reverse_N
