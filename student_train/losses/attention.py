"""Align-KD eq. 1: the student's first-layer attention against the adapted teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def attention_loss(
    adapted_teacher_BHRC: Tensor, student_BHRC: Tensor, num_rows_B: Sequence[int], num_cols_B: Sequence[int]
) -> LossSum:
    """Squared error over the real (row, column) pairs of every sample and student head; its parts are the samples.

    Args:
        adapted_teacher_BHRC: teacher attention after the adapter `Ht -> Hs`.
        student_BHRC: softmaxed student attention at the same rows and columns.
        num_rows_B, num_cols_B: real rows and columns of each sample; padding is on the right. Plain integers, because
            the count must be known without waiting for the accelerator.
    """
    error_BHRC = to_accum_dtype(adapted_teacher_BHRC) - to_accum_dtype(student_BHRC)
    mask_BRC = (
        length_mask(num_rows_B, error_BHRC.shape[2], error_BHRC)[:, :, None]
        & (length_mask(num_cols_B, error_BHRC.shape[3], error_BHRC)[:, None, :])
    )
    # masked_fill, not a product: a padded entry may have any value, and 0 * inf is not 0.
    total_B = error_BHRC.masked_fill(~mask_BRC[:, None], 0.0).square().sum(dim=(1, 2, 3))
    pairs = sum(rows * cols for rows, cols in zip(num_rows_B, num_cols_B, strict=True))
    return LossSum.of(total_B, pairs * student_BHRC.shape[1])


def length_mask(lengths_B: Sequence[int], width: int, like: Tensor) -> Tensor:
    """Bool [B, width], True at the first positions of each sample, on the device of `like`."""
    lengths = torch.tensor(list(lengths_B), device=like.device)
    return torch.arange(width, device=like.device) < lengths[:, None]
