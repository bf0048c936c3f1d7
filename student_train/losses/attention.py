"""Align-KD eq. 1: the student's first-layer attention against the adapted teacher's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from student_train.losses.loss_sum import LossSum, accumulable

# The teacher's attention of a slice of the rows, [B, r, Ht, C]
TeacherRows = Callable[[slice], Tensor]


def attention_loss(
    adapted_teacher_BHRC: Tensor, student_BHRC: Tensor, num_rows_B: Sequence[int], num_cols_B: Sequence[int]
) -> LossSum:
    """Squared error over the real (row, column) pairs of every sample and student head.

    Args:
        adapted_teacher_BHRC: teacher attention after the adapter `Ht -> Hs`.
        student_BHRC: softmaxed student attention at the same rows and columns.
        num_rows_B, num_cols_B: real rows and columns of each sample, padding is on the right. Plain integers: the
            count must be known without waiting for the accelerator.
    """
    error_BHRC = accumulable(adapted_teacher_BHRC) - accumulable(student_BHRC)
    total = _real_pairs(error_BHRC.transpose(1, 2), num_rows_B, num_cols_B).square().sum()
    return LossSum(total, _num_pairs(num_rows_B, num_cols_B) * student_BHRC.shape[1])


def adapted_attention_loss(
    student_BHRC: Tensor,
    weight_ST: Tensor,
    bias_S: Tensor,
    teacher_rows: TeacherRows,
    num_rows_B: Sequence[int],
    num_cols_B: Sequence[int],
    *,
    rows_at_once: int,
) -> LossSum:
    """`attention_loss` with the adapter, some rows at a time and each teacher row asked for once.

    The gradient of a squared error is the error: it is kept in the forward pass, the backward pass scales it.

    Args:
        student_BHRC: float32 or float64, as are the weights.
        weight_ST: the adapter from T teacher heads to S student heads.
        bias_S: its bias.
        teacher_rows: no gradient goes there.
        num_rows_B, num_cols_B: as in `attention_loss`.
        rows_at_once: r, the most rows that are asked for.
    """
    pairs = _Pairs(teacher_rows=teacher_rows, rows=num_rows_B, cols=num_cols_B, at_once=rows_at_once)
    total: Tensor = _AdaptedError.apply(student_BHRC, weight_ST, bias_S, pairs, torch.is_grad_enabled())
    return LossSum(total, _num_pairs(num_rows_B, num_cols_B) * student_BHRC.shape[1])


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """What is compared, and how many rows at a time."""

    teacher_rows: TeacherRows
    rows: Sequence[int]
    cols: Sequence[int]
    at_once: int


class _AdaptedError(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_BHRC: Tensor, weight_ST: Tensor, bias_S: Tensor, pairs: _Pairs, grad_enabled: bool
    ) -> Tensor:
        student_BRHC = student_BHRC.transpose(1, 2)
        total, parts = student_BHRC.new_zeros(()), []
        weight_grad_ST, bias_grad_S = torch.zeros_like(weight_ST), torch.zeros_like(bias_S)
        for start in range(0, student_BRHC.shape[1], pairs.at_once):
            chunk = slice(start, start + pairs.at_once)
            teacher_BrTC = pairs.teacher_rows(chunk).to(weight_ST.dtype)
            error_BrHC = (student_BRHC[:, chunk] - weight_ST @ teacher_BrTC).sub_(bias_S[:, None])
            rows = [min(max(num - start, 0), pairs.at_once) for num in pairs.rows]
            error_BrHC = _real_pairs(error_BrHC, rows, pairs.cols)
            total += error_BrHC.square().sum()
            if grad_enabled:
                parts.append(error_BrHC.mul_(2))
                weight_grad_ST -= (error_BrHC @ teacher_BrTC.transpose(2, 3)).sum((0, 1))
                bias_grad_S -= error_BrHC.sum((0, 1, 3))
        if grad_enabled:
            slopes_BRHC = torch.cat(parts, dim=1) if parts else torch.zeros_like(student_BRHC)
            ctx.save_for_backward(slopes_BRHC.transpose(1, 2), weight_grad_ST, bias_grad_S)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        return (*(factor * gradient for gradient in ctx.saved_tensors), None, None)


def _real_pairs(values_BRHC: Tensor, num_rows_B: Sequence[int], num_cols_B: Sequence[int]) -> Tensor:
    """The values, 0 where a row or a column is padding."""
    num_rows, num_cols = values_BRHC.shape[1], values_BRHC.shape[3]
    if min(num_rows_B) == num_rows and min(num_cols_B) == num_cols:
        return values_BRHC
    mask_BRC = (
        _length_mask(num_rows_B, num_rows, values_BRHC)[:, :, None]
        & (_length_mask(num_cols_B, num_cols, values_BRHC)[:, None, :])
    )
    # masked_fill, not a product: a padded entry may hold anything, and 0 * inf is not 0.
    return values_BRHC.masked_fill(~mask_BRC[:, :, None], 0.0)


def _num_pairs(num_rows_B: Sequence[int], num_cols_B: Sequence[int]) -> int:
    return sum(rows * cols for rows, cols in zip(num_rows_B, num_cols_B, strict=True))


def _length_mask(lengths_B: Sequence[int], width: int, like: Tensor) -> Tensor:
    lengths = torch.tensor(list(lengths_B), device=like.device)
    return torch.arange(width, device=like.device) < lengths[:, None]
