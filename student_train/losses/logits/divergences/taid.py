"""TAID (arXiv 2501.16937): the student follows an intermediate teacher that moves from the student to the teacher.

With x_q and x_p the log-probabilities of student and teacher on the outcomes of a position, and t the share of the
teacher (`objective/logits/taid_schedule.py`), the intermediate teacher is the geometric mixture

    m = log_softmax((1 - t) stop_gradient(x_q) + t x_p),        loss = sum of e^m (m - x_q).

t = 0 is the student itself (loss and gradient 0), t = 1 is forward KL. The gradient along the logits is q - e^m, also
that of the cross-entropy - sum of e^m x_q, which the authors report and by which t moves.

A truncated teacher is mixed on K + 1 outcomes with ONE normaliser. A geometric mixture of merged outcomes is not the
merged mixture: by Hölder's inequality the bucket gets more mass than its tokens have in the full mixture. So the
bucketed form is a loss of its own (never negative, 0 only if both sides agree on these outcomes or t = 0), and no lower
bound of the full form. They are equal where every token is kept, and for t = 0.

Shapes: N positions, O outcomes.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkd.student_train.losses.logits.rows import NO_MASS, FullRows, RowDivergence, TruncatedRows, bucketed_rows

# name of t among the values of a step
SHARE = "taid_t"
# name of the cross-entropy among the figures of the loss
CROSS_ENTROPY = "taid_cross_entropy"


def mixture(student_NO: Tensor, teacher_NO: Tensor, t: float, there_NO: Tensor | None = None) -> Tensor:
    """Log-probabilities of the intermediate teacher [N, O], without gradient.

    Args:
        student_NO, teacher_NO: log-probabilities; finite.
        t: share of the teacher, 0 to 1.
        there_NO: bool, which outcomes exist; the others get `NO_MASS`. None: all do.
    """
    # t = 0 is the student itself, not the student normalised again: the loss is 0 to the last bit then
    mixed_NO = (
        torch.lerp(student_NO.detach(), teacher_NO.detach().to(student_NO.dtype), t)
        if t
        else student_NO.detach().clone()
    )
    if there_NO is not None:
        mixed_NO = mixed_NO.masked_fill_(~there_NO, NO_MASS)
    return mixed_NO.log_softmax(dim=-1) if t else mixed_NO


def divergence_and_cross_entropy(
    student_NO: Tensor, teacher_NO: Tensor, t: float, there_NO: Tensor | None = None
) -> Tensor:
    """The loss, and the cross-entropy of the intermediate teacher and the student, of each position: [2, N] in nats.

    Differentiable once, the cross-entropy not at all.

    Args:
        student_NO: log-probabilities of outcomes whose masses add up to 1; finite, also where one does not exist.
        teacher_NO, t, there_NO: as for `mixture`.
    """
    found: Tensor = _Following.apply(student_NO, mixture(student_NO, teacher_NO, t, there_NO), there_NO)
    return found


class _Following(torch.autograd.Function):
    """The gradient along the log-probabilities is q - e^m.

    That of the formula is -e^m. Both give the same gradient along the logits, because the masses of the outcomes add up
    to 1. But with q - e^m nothing is left to cancel: where student and intermediate teacher agree, it is 0.
    """

    @staticmethod
    def forward(ctx: Any, student_NO: Tensor, mixed_NO: Tensor, there_NO: Tensor | None) -> Tensor:
        mass_NO = mixed_NO.exp()
        slope_NO, terms_NO = student_NO.exp().sub_(mass_NO), (mixed_NO - student_NO).mul_(mass_NO)
        if there_NO is not None:
            slope_NO, terms_NO = slope_NO.masked_fill_(~there_NO, 0.0), terms_NO.masked_fill_(~there_NO, 0.0)
        ctx.save_for_backward(slope_NO)
        # outcomes that do not exist have mass 0 and a finite log-probability of the student
        return torch.stack([terms_NO.sum(dim=-1), mass_NO.mul_(student_NO).sum(dim=-1).neg_()])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_2N: Tensor) -> tuple[Tensor | None, ...]:
        (slope_NO,) = ctx.saved_tensors
        return slope_NO * grad_2N[0][:, None], None, None


def _full(rows: FullRows) -> Tensor:
    return divergence_and_cross_entropy(rows.student_NV, rows.teacher_NV, rows.step_values[SHARE])


def _bucketed(rows: TruncatedRows) -> Tensor:
    outcomes = bucketed_rows(rows)
    return divergence_and_cross_entropy(
        outcomes.student_NO, outcomes.teacher_NO, rows.step_values[SHARE], outcomes.there_NO
    )


FULL = RowDivergence(full=_full, truncated=None, figures=(CROSS_ENTROPY,))
BUCKETED = RowDivergence(full=None, truncated=_bucketed, figures=(CROSS_ENTROPY,))
