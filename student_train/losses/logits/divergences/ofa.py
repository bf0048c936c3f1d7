"""The target-enhanced loss of OFA-KD (arXiv 2310.19444), with y the label:

    -((1 + p_y)^g - 1) log q_y - sum over c != y of p_c log q_c

For g = 1 it is the cross-entropy of p and q; a larger g raises the label's share where the teacher is sure of it. It is
not 0 for q = p: at g = 1 it is then the entropy of p. The published formula has (1 + p_y)^g, whose plain -log q_y is
the supervised loss; here the supervised loss is a term of its own.

Probabilities enter linearly but for p_y, so all other tokens of a truncated teacher may be merged into one bucket: the
loss is then lower by the cross-entropy inside the bucket. A label that is not kept is a part of the bucket, its own
share taken as 0.
"""

from functools import partial

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.rows import FullRows, RowDivergence, TruncatedRows, bucketed_rows


def ofa(gamma: float = 1.0) -> RowDivergence:
    """The row divergence; `gamma` at least 1."""
    return RowDivergence(
        full=partial(full_values, gamma=gamma), truncated=partial(truncated_values, gamma=gamma), uses_labels=True
    )


def full_values(rows: FullRows, gamma: float) -> Tensor:
    """From all outcomes, [n]."""
    assert rows.labels_N is not None
    teacher_N, student_N = (x_NV.gather(1, rows.labels_N[:, None])[:, 0] for x_NV in (rows.teacher_NV, rows.student_NV))
    cross_entropy_N = -(rows.teacher_NV.exp() * rows.student_NV).sum(dim=-1)
    return cross_entropy_N - _raised(teacher_N.exp(), gamma) * student_N


def truncated_values(rows: TruncatedRows, gamma: float) -> Tensor:
    """From the kept tokens and the bucket, [n]."""
    student_N, teacher = rows.student.label_logprobs_N, rows.teacher
    assert rows.labels_N is not None and student_N is not None
    sides = bucketed_rows(rows)
    cross_entropy_N = -sides.total(sides.teacher_NO.exp() * sides.student_NO)
    is_label_NK = teacher.kept_NK & (teacher.ids_NK == rows.labels_N[:, None])
    label_N = sides.teacher_NO[:, :-1].exp().masked_fill(~is_label_NK, 0.0).sum(dim=-1)
    return cross_entropy_N - _raised(label_N, gamma) * student_N


def _raised(label_N: Tensor, gamma: float) -> Tensor:
    """The label's weight above its probability: (1 + p)^g - 1 - p."""
    return torch.expm1(gamma * torch.log1p(label_N)) - label_N
