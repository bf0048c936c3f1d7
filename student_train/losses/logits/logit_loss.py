"""Align-KD eq. 6: divergence between the student's and the teacher's next-token distributions.

A truncated teacher is compared on K + 1 outcomes: its kept tokens and ONE bucket for all others, whose mass was
measured from the full distribution. That is a true divergence (never negative, 0 only if both sides agree on
these outcomes). Partial sums over the kept tokens are not: they teach the student to avoid the kept tokens.

A teacher whose tail is unknown can only be compared on its kept tokens, both sides renormalised over them
(`support_values`). That is a true divergence of the two conditional distributions, and ignores the tail.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from alignkd.student_train.losses.logits.divergences.f_divergences import Divergence, reverse_kl
from alignkd.student_train.losses.logits.outcomes import Outcomes, outcomes
from alignkd.student_train.losses.logits.rows import NO_MASS, FullRows, RowDivergence, TruncatedRows, WholeStudentRows
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.vlm.families.family import Head

NO_VALUES: Mapping[str, float] = MappingProxyType({})


def logit_loss(
    student_logits_NV: Tensor,
    teacher: Tensor | TruncatedDistribution,
    *,
    divergence: Divergence | RowDivergence = reverse_kl,
    temperature: float = 1.0,
    on_support: bool = False,
    labels_N: Tensor | None = None,
    step_values: Mapping[str, float] = NO_VALUES,
    groups: tuple[int, ...] = (),
) -> LossSum:
    """Sum over positions of the divergence in nats.

    Args:
        student_logits_NV: the student's logits at N supervised positions.
        teacher: full logits [N, V], or a truncated distribution.
        divergence: a function of `losses/logits/divergences/f_divergences.py`, or a row divergence; reverse KL is
            the paper's.
        temperature: divides both sides' logits; the loss is multiplied by its square so that the size of the
            gradient does not depend on it (Hinton et al. 2015).
        on_support: compare the kept tokens alone, see `support_values`; the teacher is truncated, and the divergence is
            per outcome.
        labels_N: int64, for row divergences that use them.
        step_values, groups: see `FullRows`.

    Raises:
        ValueError: the teacher is truncated, the temperature is not 1 and the divergence needs the tail. The tempered
            mass of the tail is unknown.

    `sampled_logit.py` has the same loss for a teacher that is stored as draws.
    """
    rows = divergence if isinstance(divergence, RowDivergence) else per_outcome(divergence, on_support=on_support)
    if isinstance(teacher, TruncatedDistribution):
        if temperature != 1.0 and not rows.tempered:
            raise ValueError(f"temperature {temperature} needs full logits, found truncated; use 1.0 or store full")
        if rows.whole_student is not None:
            logprobs_NV = functional.log_softmax(to_accum_dtype(student_logits_NV), dim=-1)
            whole = WholeStudentRows(student_NV=logprobs_NV, teacher=teacher, groups=groups)
            return LossSum.of(rows.whole_student(whole))
        seen = outcomes(
            to_accum_dtype(student_logits_NV),
            labels_N=labels_N if rows.uses_labels else None,
            ids_NK=teacher.ids_NK,
            kept_NK=teacher.kept_NK,
            squares=rows.uses_squares,
        )
        return truncated_loss(rows, seen, teacher, temperature=temperature, labels_N=labels_N, step_values=step_values)
    assert rows.full is not None, rows
    student_NV = functional.log_softmax(to_accum_dtype(student_logits_NV) / temperature, dim=-1)
    teacher_NV = functional.log_softmax(to_accum_dtype(teacher) / temperature, dim=-1)
    found = rows.full(
        FullRows(
            student_NV=student_NV, teacher_NV=teacher_NV, labels_N=labels_N, step_values=step_values, groups=groups
        )
    )
    return _summed(rows, found * temperature**2)


def truncated_loss(
    divergence: RowDivergence,
    student: Outcomes,
    teacher: TruncatedDistribution,
    *,
    temperature: float = 1.0,
    labels_N: Tensor | None = None,
    step_values: Mapping[str, float] = NO_VALUES,
) -> LossSum:
    """`logit_loss` for a truncated teacher, from the student's log-probabilities of its tokens and tail."""
    assert divergence.truncated is not None, divergence
    rows = TruncatedRows(
        student=student, teacher=teacher, temperature=temperature, labels_N=labels_N, step_values=step_values
    )
    return _summed(divergence, divergence.truncated(rows) * temperature**2)


def _summed(divergence: RowDivergence, values: Tensor) -> LossSum:
    """The sum of what a row divergence returns."""
    if not divergence.figures:
        return LossSum.of(values)
    loss_N, *others = values.unbind()
    figures = {name: value_N.detach() for name, value_N in zip(divergence.figures, others, strict=True)}
    return replace(LossSum.of(loss_N), figures=figures)


def per_outcome(divergence: Divergence, *, on_support: bool = False) -> RowDivergence:
    """The row divergence that is the sum of one term per outcome; on the support, of the kept tokens alone."""
    if on_support:
        return RowDivergence(
            full=None,
            truncated=lambda rows: support_values(rows, divergence),
            tempered=True,
        )
    return RowDivergence(
        full=lambda rows: divergence(rows.student_NV, rows.teacher_NV).sum(dim=-1),
        truncated=lambda rows: bucketed_values(rows, divergence),
    )


def teacher_logits(states_ND: Tensor, head: Head) -> Tensor:
    """The teacher's logits [N, V] from its stored last hidden states: exact for every divergence and temperature.

    In the dtype of its head, like the logits of the live teacher.
    """
    return head(states_ND.to(head.weight_VD.dtype))


def bucketed_values(rows: TruncatedRows, divergence: Divergence) -> Tensor:
    """A per-outcome divergence on K + 1 outcomes, [n]."""
    student, teacher = rows.student, rows.teacher
    assert student.logprobs_NK is not None and teacher.tail_logmass_N is not None
    dtype = student.logprobs_NK.dtype
    values_NK = divergence(student.logprobs_NK, teacher.logprobs_NK.to(dtype))
    kept_N = values_NK.masked_fill(~teacher.kept_NK, 0.0).sum(dim=-1)
    has_tail_N = teacher.kept_NK.sum(dim=-1) < student.vocab_size
    # A position that keeps every token has no tail: both sides' mass is exp(-inf), whose gradient is NaN. Replace it by
    # 0 before the divergence and mask the result as well; masking the result alone would leave 0 * NaN.
    student_tail_N = torch.where(has_tail_N, student.tail_logmass_N, 0.0)
    teacher_tail_N = torch.where(has_tail_N, teacher.tail_logmass_N.to(dtype).clamp(min=NO_MASS), 0.0)
    tail_N = torch.where(has_tail_N, divergence(student_tail_N, teacher_tail_N), 0.0)
    return kept_N + tail_N


def support_values(rows: TruncatedRows, divergence: Divergence) -> Tensor:
    """A per-outcome divergence on the kept tokens S of each position alone, which needs no tail, [n].

    With q_k^(1/T) / (sum over S of q^(1/T)) for the student, the same of the teacher, and T the temperature: the
    divergence of the two. The mass of the whole vocabulary cancels on both sides, so it depends on the student's
    logits of S alone, and its gradient on all other logits is 0.
    """
    assert rows.student.logprobs_NK is not None
    kept_NK = rows.teacher.kept_NK
    student_NK = _over_kept(rows.student.logprobs_NK / rows.temperature, kept_NK)
    teacher_NK = _over_kept(rows.teacher.logprobs_NK.to(student_NK.dtype) / rows.temperature, kept_NK)
    return divergence(student_NK, teacher_NK).masked_fill(~kept_NK, 0.0).sum(dim=-1)


def _over_kept(logprobs_NK: Tensor, kept_NK: Tensor) -> Tensor:
    """Log-softmax over the kept entries of each position; 0 elsewhere, because -inf would give NaN in a divergence."""
    normalised_NK = logprobs_NK.masked_fill(~kept_NK, -torch.inf).log_softmax(dim=-1)
    return normalised_NK.masked_fill(~kept_NK, 0.0)
