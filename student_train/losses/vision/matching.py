"""Which vision token of the teacher each vision token of the student is compared with: the matching of EM-KD.

The pairs have the smallest sum of L1 distances between LOGITS over the whole vocabulary (arXiv 2511.21106), found by
the Hungarian method: one to one, min(Ps, Pt) pairs. The matching has no gradient. Logits are not shifted to a common
normaliser before, so it needs the full logits of both sides: of a truncated teacher most distances would be those to
absent entries.

Shapes: Ps and Pt vision tokens of one image for student and teacher, V vocabulary, D hidden sizes.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from alignkd.student_train.losses.loss_sum import to_accum_dtype
from alignkd.vlm.families.family import Head

# Stands for a distance that is not finite: the matching of a diverged model is arbitrary, and its loss shows it.
NO_DISTANCE = 1e30


def logit_distances(student_PV: Tensor, teacher_PV: Tensor) -> Tensor:
    """L1 distance of each student row [Ps, V] to each teacher row [Pt, V]: [Ps, Pt], float32 or float64."""
    return torch.cdist(to_accum_dtype(student_PV), to_accum_dtype(teacher_PV), p=1.0)


@torch.no_grad()
def state_distances(
    student_PD: Tensor,
    student_head: Head,
    teacher_PD: Tensor,
    teacher_head: Head,
    *,
    num_tokens: int | None = None,
    chunk_bytes: int,
) -> Tensor:
    """`logit_distances` of the logits of last hidden states, a part of the vocabulary at a time.

    Args:
        student_PD, teacher_PD: in the dtypes of their heads.
        num_tokens: compare the first `num_tokens` entries of the vocabulary; None: all.
        chunk_bytes: largest size of the float32 logits of one part of the vocabulary, of both sides together.
    """
    vocabulary = len(student_head.weight_VD) if num_tokens is None else num_tokens
    columns = max(1, chunk_bytes // (4 * max(1, len(student_PD) + len(teacher_PD))))
    total = to_accum_dtype(student_PD.new_zeros(len(student_PD), len(teacher_PD)))
    for start in range(0, vocabulary, columns):
        part = slice(start, min(start + columns, vocabulary))
        total += logit_distances(_part(student_head, part)(student_PD), _part(teacher_head, part)(teacher_PD))
    return total


def cheapest_pairs(distances: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns [min(Ps, Pt)] of the one-to-one pairs with the smallest sum; rows rising."""
    finite = np.nan_to_num(distances, nan=NO_DISTANCE, posinf=NO_DISTANCE, neginf=NO_DISTANCE)
    rows, columns = linear_sum_assignment(finite)
    return rows.astype(np.int64), columns.astype(np.int64)


def _part(head: Head, part: slice) -> Head:
    bias_V = None if head.bias_V is None else head.bias_V[part]
    return replace(head, weight_VD=head.weight_VD[part], bias_V=bias_V)
