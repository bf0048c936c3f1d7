"""Align-KD eq. 3 and 4: the student's vision embeddings against the adapted teacher's."""

import torch
from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def vision_all_loss(adapted_teacher_IPD: Tensor, student_IPD: Tensor) -> LossSum:
    """Eq. 4: squared error over all P vision tokens of I images, D the student's hidden size."""
    return _squared_error(adapted_teacher_IPD, student_IPD)


def vision_top_loss(adapted_teacher_IKD: Tensor, student_IPD: Tensor, index_IK: Tensor) -> LossSum:
    """Eq. 3: squared error over the K vision tokens that the teacher's text queries attend to most.

    Args:
        adapted_teacher_IKD: teacher embeddings of the tokens `index_IK`, after the adapter `Dt -> Ds`.
        student_IPD: all of the student's vision embeddings.
        index_IK: int64, positions among the P vision tokens (eq. 2).
    """
    index_IKD = index_IK[:, :, None].expand(-1, -1, student_IPD.shape[-1])
    return _squared_error(adapted_teacher_IKD, torch.gather(student_IPD, 1, index_IKD))


def _squared_error(teacher: Tensor, student: Tensor) -> LossSum:
    assert teacher.shape == student.shape, (teacher.shape, student.shape)
    return LossSum((to_accum_dtype(teacher) - to_accum_dtype(student)).square().sum(), student.numel())
