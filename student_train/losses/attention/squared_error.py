"""Align-KD eq. 1: the student's attention against the adapted teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkd.student_train.losses.loss_sum import to_accum_dtype


def attention_loss(
    adapted_teacher_BHRC: Tensor,
    student_BHRC: Tensor,
    num_rows_B: Sequence[int] | Tensor,
    num_cols_B: Sequence[int] | Tensor,
) -> Tensor:
    """Squared error over the real (row, column) pairs of all student heads, its sum for each sample [B].

    Args:
        adapted_teacher_BHRC: teacher attention after the adapter `Ht -> Hs`.
        student_BHRC: softmaxed student attention at the same rows and columns.
        num_rows_B, num_cols_B: real rows and columns of each sample, as in `length_mask`; padding is on the right.
    """
    mask_BRC = (
        length_mask(num_rows_B, student_BHRC.shape[2], student_BHRC)[:, :, None]
        & length_mask(num_cols_B, student_BHRC.shape[3], student_BHRC)[:, None, :]
    )
    return squared_errors(adapted_teacher_BHRC, student_BHRC, mask_BRC)


def squared_errors(adapted_teacher_BHRC: Tensor, student_BHRC: Tensor, mask_BRC: Tensor) -> Tensor:
    """`attention_loss` for a mask that is True at real pairs."""
    error_BHRC = to_accum_dtype(adapted_teacher_BHRC) - to_accum_dtype(student_BHRC)
    # masked_fill, not a product: a padded entry may have any value, and 0 * inf is not 0.
    return error_BHRC.masked_fill_(~mask_BRC[:, None], 0.0).square().sum(dim=(1, 2, 3))


def length_mask(lengths_B: Sequence[int] | Tensor, width: int, like: Tensor) -> Tensor:
    """Bool [B, width], True at the first positions of each sample, on the device of `like`.

    Args:
        lengths_B: a tensor must be on that device; of plain integers one is made, for which an accelerator is waited
            for.
    """
    lengths = lengths_B if isinstance(lengths_B, Tensor) else torch.tensor(list(lengths_B), device=like.device)
    return torch.arange(width, device=like.device) < lengths[:, None]
