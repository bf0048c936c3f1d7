"""Norm and direction of the last hidden states, ND loss (KD++, arXiv 2305.17007).

With s the student's state at a position, t the teacher's, and c_y the mean of the teacher's states whose next token is
y (the class), the loss at the position is

    1 - s . c_y / |c_y| / max(|s|, |t|).

It pulls s towards the direction of its class and, where |s| < |t|, to a larger norm.

Shapes: N positions, D width of the states of both models.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.vlm.relations import SMALLEST_NORM, unit_rows


def norm_direction_loss(
    student_ND: Tensor, centres_ND: Tensor, teacher_norms_N: Tensor, has_centre_N: Tensor | None = None
) -> LossSum:
    """Sum over positions of the loss.

    Args:
        student_ND: the student's states, in the teacher's width.
        centres_ND: c_y of each position's next token, of any norm.
        teacher_norms_N: |t|.
        has_centre_N: bool, the positions whose token has a centre; others add 0. None: all.
    """
    student_ND = to_accum_dtype(student_ND)
    directions_ND = unit_rows(to_accum_dtype(centres_ND))
    norms_N = torch.maximum(student_ND.norm(dim=-1), to_accum_dtype(teacher_norms_N)).clamp(min=SMALLEST_NORM)
    parts_N = 1 - (student_ND * directions_ND).sum(-1) / norms_N
    return LossSum.of(parts_N if has_centre_N is None else parts_N.masked_fill(~has_centre_N, 0.0))
