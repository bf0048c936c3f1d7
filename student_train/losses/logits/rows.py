"""Row divergences: functions of all outcomes of a position, for divergences that are no sum of one term per outcome.

A row divergence sees the outcomes of both sides at n positions and returns one value per position [n]. A full teacher
gives `FullRows`, a truncated one `TruncatedRows`, or `WholeStudentRows` where a position is compared with the teacher
at other positions. Per-outcome divergences (`divergences.py`) become row divergences by `per_outcome` in
`logit_loss.py`, so that the terms on logits know one form only.

Shape letters: n positions of a chunk, V vocabulary, K kept entries, O = K + 1 outcomes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.outcomes import Outcomes
from alignkd.student_train.losses.logits.truncated_distribution import TruncatedDistribution

# Log-probability of an outcome without mass; finite, because 0 * inf is not 0.
NO_MASS = -1e30


@dataclass(frozen=True, kw_only=True)
class FullRows:
    """Both sides over the whole vocabulary.

    Attributes:
        student_NV, teacher_NV: float32 or float64 log-probabilities at the temperature of the loss.
        labels_N: int64, the data's own next token; None if they are not given.
        step_values: numbers that change from step to step, by name; the caller sets them.
        groups: sizes of the groups of consecutive positions that are compared with one another; their sum is n. Empty
            for a divergence without groups.
    """

    student_NV: Tensor
    teacher_NV: Tensor
    labels_N: Tensor | None = None
    step_values: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TruncatedRows:
    """The student's outcomes and a truncated teacher.

    Attributes:
        student: log-probabilities at temperature 1 of the teacher's entries and of its tail; those of the labels, and
            squared masses, only for a divergence that needs them.
        teacher: its tail is None where the store does not know it.
        temperature: that of the loss; other than 1 only for a divergence that is `tempered` on truncated teachers.
        labels_N, step_values: as in `FullRows`.
    """

    student: Outcomes
    teacher: TruncatedDistribution
    temperature: float = 1.0
    labels_N: Tensor | None = None
    step_values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class WholeStudentRows:
    """The student over the whole vocabulary and a truncated teacher.

    Attributes:
        student_NV: float32 or float64 log-probabilities at temperature 1.
        teacher: its tail is known.
        groups: as in `FullRows`.
    """

    student_NV: Tensor
    teacher: TruncatedDistribution
    groups: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RowDivergence:
    """A divergence as functions of rows; each returns values [n] in nats or in the unit of its formula.

    Attributes:
        full: for a teacher whose outcomes are all known; None: it needs kept tokens.
        truncated: for a truncated teacher; None: it needs all outcomes, or has `whole_student`.
        whole_student: in place of `truncated`, for a student whose probabilities at other tokens are needed, too.
        group_positions: largest number of consecutive positions of a sample that are compared with one another; None:
            each position is compared alone.
        tempered: `truncated` is defined at every temperature. The others need the tempered mass of the tail, which
            is unknown.
        uses_labels: it needs the labels, and their log-probabilities in the student's outcomes.
        uses_squares: `truncated` needs the student's squared mass in the tail.
        figures: names of further values, without gradient; `full` and `truncated` then return [1 + figures, n].
    """

    full: Callable[[FullRows], Tensor] | None
    truncated: Callable[[TruncatedRows], Tensor] | None
    whole_student: Callable[[WholeStudentRows], Tensor] | None = None
    group_positions: int | None = None
    tempered: bool = False
    uses_labels: bool = False
    uses_squares: bool = False
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BucketedRows:
    """Both sides on K + 1 outcomes: the kept tokens and one bucket for all others.

    Attributes:
        student_NO, teacher_NO: log-probabilities; 0 where `there_NO` is False, so that every function of them is
            finite there, with a finite gradient. A bucket in which the teacher has no mass is `NO_MASS` for it.
        there_NO: bool, False where padded, and for the bucket of a position that keeps every token.
    """

    student_NO: Tensor
    teacher_NO: Tensor
    there_NO: Tensor

    def total(self, values_NO: Tensor) -> Tensor:
        """The sum over the outcomes that are there, [n]."""
        return values_NO.masked_fill(~self.there_NO, 0.0).sum(dim=-1)


def bucketed_rows(rows: TruncatedRows) -> BucketedRows:
    """The outcomes of a truncated teacher with a known tail in one tensor for each side; the bucket is the last."""
    student, teacher = rows.student, rows.teacher
    assert student.logprobs_NK is not None and teacher.tail_logmass_N is not None
    kept_NK, dtype = teacher.kept_NK, student.logprobs_NK.dtype
    has_tail_N1 = kept_NK.sum(dim=-1, keepdim=True) < student.vocab_size
    there_NO = torch.cat([kept_NK, has_tail_N1], dim=-1)
    tail_N1 = teacher.tail_logmass_N.to(dtype)[:, None].clamp(min=NO_MASS)
    student_NO = torch.cat([student.logprobs_NK, student.tail_logmass_N[:, None]], dim=-1)
    teacher_NO = torch.cat([teacher.logprobs_NK.to(dtype), tail_N1], dim=-1)
    return BucketedRows(
        # masked before any function of them; the student's tail is -inf where it has none
        student_NO=torch.where(there_NO, student_NO, 0.0),
        teacher_NO=torch.where(there_NO, teacher_NO, 0.0),
        there_NO=there_NO,
    )
