"""Align-KD eq. 3 and 4: the student's vision embeddings against the adapted teacher's."""

from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def vision_all_loss(adapted_teacher_PD: Tensor, student_PD: Tensor) -> LossSum:
    """Eq. 4: squared error over the P vision tokens of all images, D the student's hidden size."""
    return _squared_error(adapted_teacher_PD, student_PD)


def vision_top_loss(adapted_teacher_KD: Tensor, student_PD: Tensor, index_K: Tensor) -> LossSum:
    """Eq. 3: squared error over the vision tokens that the teacher's text queries attend to most.

    Args:
        adapted_teacher_KD: teacher embeddings of the tokens `index_K`, after the adapter `Dt -> Ds`.
        student_PD: all of the student's vision embeddings.
        index_K: int64, positions among the P vision tokens of all images (eq. 2 for each sample).
    """
    return _squared_error(adapted_teacher_KD, student_PD.index_select(0, index_K))


def _squared_error(teacher: Tensor, student: Tensor) -> LossSum:
    assert teacher.shape == student.shape, (teacher.shape, student.shape)
    error = to_accum_dtype(teacher) - to_accum_dtype(student)
    return LossSum.of(error.square().sum(dim=-1), student.numel())
