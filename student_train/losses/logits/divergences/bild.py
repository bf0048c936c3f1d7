"""BiLD (arXiv 2406.13555): the differences between the k largest logits, not the logits themselves.

The k(k-1)/2 differences z_i - z_j of the teacher's k most probable tokens, divided by a temperature, become a
distribution by a softmax; so do the student's differences of the same tokens. The teacher-led loss is
KL(teacher, student) of the two. The student-led loss is the same KL for the student's own k most probable tokens.

A difference of logits is a difference of log-probabilities: the teacher-led loss is exact at every temperature on a
truncated teacher that keeps its k most probable tokens, whether or not the tail is known. A position that keeps fewer
compares those; with fewer than three its loss is 0, because the softmax over a single difference is always 1.

Shape letters: k tokens, D = k(k-1)/2 differences.
"""

from functools import partial

import torch
from torch import Tensor

from alignkd.student_train.losses.logits.rows import NO_MASS, FullRows, RowDivergence, TruncatedRows


def bild(k: int = 8, temperature: float = 3.0, *, student_led: bool = True) -> RowDivergence:
    """The row divergence: the sum of the teacher-led and, if asked for, the student-led loss.

    The student-led loss needs the teacher at tokens that the student chooses, so then it has no truncated form.
    """
    teacher_led = partial(truncated_values, k=k, temperature=temperature)
    return RowDivergence(
        full=partial(full_values, k=k, temperature=temperature, student_led=student_led),
        truncated=None if student_led else teacher_led,
    )


def full_values(rows: FullRows, k: int, temperature: float, *, student_led: bool) -> Tensor:
    """From all outcomes, [n]."""
    found_N = led_values(rows.teacher_NV, rows.student_NV, rows.teacher_NV, k, temperature)
    if student_led:
        found_N = found_N + led_values(rows.student_NV, rows.student_NV, rows.teacher_NV, k, temperature)
    return found_N


def led_values(leader_NV: Tensor, student_NV: Tensor, teacher_NV: Tensor, k: int, temperature: float) -> Tensor:
    """KL(teacher, student) of the differences at the leader's k most probable tokens, [n]."""
    ids_Nk = leader_NV.detach().topk(min(k, leader_NV.shape[1]), dim=-1).indices
    there_Nk = torch.ones_like(ids_Nk, dtype=torch.bool)
    return _of_differences(student_NV.gather(1, ids_Nk), teacher_NV.gather(1, ids_Nk), there_Nk, temperature)


def truncated_values(rows: TruncatedRows, k: int, temperature: float) -> Tensor:
    """The teacher-led loss from the kept tokens, [n]."""
    student_NK, teacher = rows.student.logprobs_NK, rows.teacher
    assert student_NK is not None
    teacher_NK = teacher.logprobs_NK.to(student_NK.dtype)
    places_Nk = teacher_NK.masked_fill(~teacher.kept_NK, -torch.inf).topk(min(k, teacher_NK.shape[1]), dim=-1).indices
    return _of_differences(
        student_NK.gather(1, places_Nk),
        teacher_NK.gather(1, places_Nk),
        teacher.kept_NK.gather(1, places_Nk),
        temperature,
    )


def _of_differences(student_Nk: Tensor, teacher_Nk: Tensor, there_Nk: Tensor, temperature: float) -> Tensor:
    num = student_Nk.shape[1]
    first_D, second_D = torch.triu_indices(num, num, offset=1, device=student_Nk.device)
    there_ND = there_Nk[:, first_D] & there_Nk[:, second_D]
    student_ND, teacher_ND = (
        ((x_Nk[:, first_D] - x_Nk[:, second_D]) / temperature).masked_fill(~there_ND, NO_MASS).log_softmax(dim=-1)
        for x_Nk in (student_Nk, teacher_Nk)
    )
    return (teacher_ND.exp() * (teacher_ND - student_ND)).masked_fill(~there_ND, 0.0).sum(dim=-1)
