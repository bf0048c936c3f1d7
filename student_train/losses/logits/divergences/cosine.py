"""1 - cosine of the two vectors of probabilities: p·q / (|p| |q|) with Euclidean norms.

It is not an f-divergence: probabilities of different tokens may not be added. A truncated teacher gives the product
and its own norm over the kept tokens; the student's norm is over the whole vocabulary. The error is then at most
2 |p_tail| / |p|, with p_tail the teacher's probabilities of the tokens that are not kept: p_kept and p differ by
p_tail, so their directions differ by at most 2 |p_tail| / |p|, and the cosines with a fixed direction by no more.
"""

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.rows import NO_MASS, FullRows, RowDivergence, TruncatedRows


def cosine_probs() -> RowDivergence:
    """The row divergence; the student's outcomes must have squared masses."""
    return RowDivergence(full=full_values, truncated=truncated_values, uses_squares=True)


def full_values(rows: FullRows) -> Tensor:
    """From all outcomes, [n]."""
    return _from_logs(
        product_N=(rows.student_NV + rows.teacher_NV).logsumexp(dim=-1),
        student_squares_N=(2 * rows.student_NV).logsumexp(dim=-1),
        teacher_squares_N=(2 * rows.teacher_NV).logsumexp(dim=-1),
    )


def truncated_values(rows: TruncatedRows) -> Tensor:
    """From the kept tokens and the student's squared mass in the tail, [n]."""
    student, kept_NK = rows.student, rows.teacher.kept_NK
    assert student.logprobs_NK is not None and student.tail_log_squares_N is not None
    student_NK = student.logprobs_NK.masked_fill(~kept_NK, NO_MASS)
    teacher_NK = rows.teacher.logprobs_NK.to(student_NK.dtype).masked_fill(~kept_NK, NO_MASS)
    return _from_logs(
        product_N=(student_NK + teacher_NK).logsumexp(dim=-1),
        student_squares_N=torch.logaddexp((2 * student_NK).logsumexp(dim=-1), student.tail_log_squares_N),
        teacher_squares_N=(2 * teacher_NK).logsumexp(dim=-1),
    )


def _from_logs(*, product_N: Tensor, student_squares_N: Tensor, teacher_squares_N: Tensor) -> Tensor:
    # 1 - exp(x) for x near 0, where both sides agree
    return -torch.expm1(product_N - (student_squares_N + teacher_squares_N) / 2)
