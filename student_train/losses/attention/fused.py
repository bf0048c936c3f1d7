"""A loss on selected attention rows, fused with the attention: only one chunk of rows is held at a time.

For each chunk of rows, scores, softmax, the loss on the selected columns, its gradient with respect to the scores, and
the products of that gradient with queries and keys are computed IN THE FORWARD PASS, in the memory of the scores. The
backward pass only scales the gradients. Computing the scores again in the backward pass would cost a fourth product of
R * L * d per head, at a time when the decoder's activations still take memory. `fused_head.py` does the same with the
output head.

Shape letters: B samples, H heads, L positions, R rows, r of a chunk, C columns, d size of a head.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkd.student_train.losses.attention.outcomes import AttentionColumns, AttentionOutcomes
from alignkd.student_train.losses.attention.squared_error import length_mask
from alignkd.student_train.losses.inner_autograd import gradients_of
from alignkd.vlm.attention.attention_rows import RowInputs, attention_scores, row_chunks

# The loss of each sample [B] over some rows, from their attention (float32 [B, H, r, C], float64 for float64 input),
# the slice of rows, and the loss's parameters. If the loss is one of outcomes, it gets logarithms [B, H, r, C + 1]: the
# last is that of the attention to all other keys together; -inf where the row attends to none of an outcome's keys.
RowsLoss = Callable[..., Tensor]


def fused_attention_loss(
    inputs: RowInputs,
    cols_BC: Tensor,
    loss: RowsLoss,
    parameters: Sequence[Tensor],
    *,
    rows_at_once: int,
    num_cols_B: Sequence[int] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum of the loss over all rows: a scalar, and its parts by sample [B], which have no gradient.

    Both are float32 (float64 for float64 input).

    Args:
        inputs, cols_BC: as in `alignkd.vlm.attention.attention_rows`; queries and keys get a gradient.
        loss: called with each chunk of rows; returns the sum over them for each sample [B].
        parameters: further tensors that get a gradient, float32 or float64; passed on to `loss`.
        rows_at_once: rows in a chunk. In addition to one float32 [B, H, r, L] (two with a soft cap, three for a loss of
            outcomes), float32 gradients of queries and keys are held.
        num_cols_B: for a loss of outcomes: the real columns of each sample, as in `length_mask`; all other keys are one
            outcome.
    """
    real_BC = None if num_cols_B is None else length_mask(num_cols_B, cols_BC.shape[1], cols_BC)
    places = _Places(inputs=inputs, cols_BC=cols_BC, at_once=rows_at_once, real_BC=real_BC)
    total, parts_B = _FusedAttention.apply(
        inputs.query_BHRd, inputs.key_BHLd, places, loss, torch.is_grad_enabled(), *parameters
    )
    return total, parts_B


@dataclass(frozen=True, kw_only=True)
class _Places:
    """The selected part of the attention; `real_BC` is given for a loss of outcomes, True where not padded."""

    inputs: RowInputs
    cols_BC: Tensor
    at_once: int
    real_BC: Tensor | None


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BHRd: Tensor,
        key_BHLd: Tensor,
        places: _Places,
        loss: RowsLoss,
        grad_enabled: bool,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wanted = (query_BHRd, key_BHLd, *parameters) if grad_enabled else ()
        gradients = [
            torch.zeros_like(like, dtype=_summed(like), memory_format=torch.contiguous_format) for like in wanted
        ]
        whole, products = places.inputs.contiguous(), _product_dtype(key_BHLd.dtype)
        # converted once, not for each chunk
        factors = [value.to(products) for value in (whole.query_BHRd, whole.key_BHLd)] if grad_enabled else []
        parts_B = torch.zeros(len(query_BHRd), dtype=_summed(query_BHRd), device=query_BHRd.device)

        def summed_loss(rows: slice, chosen_BHrC: Tensor, *leaves: Tensor) -> Tensor:
            loss_B = loss(chosen_BHrC, rows, *leaves)
            parts_B.add_(loss_B.detach())
            return loss_B.sum()

        for chunk in row_chunks(query_BHRd.shape[2], places.at_once):
            inputs = whole.chunk(chunk)
            scores_BHrL = attention_scores(inputs, places.cols_BC)
            slope_BHrL = _slope(scores_BHrL, inputs.softcap) if grad_enabled else None
            chosen = _chosen(scores_BHrL, inputs, places)
            if not grad_enabled:
                summed_loss(chunk, chosen.values_BHrC, *parameters)
                continue
            grad_chosen_BHrC, *of_parameters = gradients_of(
                partial(summed_loss, chunk), [chosen.values_BHrC, *parameters]
            )
            grad_scores_BHrL = chosen.grad_scores(grad_chosen_BHrC, inputs.scaling)
            if slope_BHrL is not None:
                grad_scores_BHrL.mul_(slope_BHrL)
            _add_products(grad_scores_BHrL.to(products), chunk, factors, gradients)
            for own, more in zip(gradients[2:], of_parameters, strict=True):
                own += more
            del scores_BHrL, slope_BHrL, chosen, grad_scores_BHrL  # before those of the next chunk are allocated
        if grad_enabled:
            ctx.save_for_backward(*gradients)
            ctx.dtypes = [like.dtype for like in (query_BHRd, key_BHLd, *parameters)]
        ctx.mark_non_differentiable(parts_B)
        return parts_B.sum(), parts_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        query, key, *parameters = (
            torch.mul(gradient, factor, out=torch.empty_like(gradient, dtype=dtype))
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return query, key, None, None, None, *parameters


def _chosen(scores_BHrL: Tensor, inputs: RowInputs, places: _Places) -> AttentionColumns | AttentionOutcomes:
    if places.real_BC is None:
        return AttentionColumns(scores_BHrL, inputs, places.cols_BC)
    return AttentionOutcomes(scores_BHrL, inputs, places.cols_BC, places.real_BC)


def _slope(scores_BHrL: Tensor, softcap: float | None) -> Tensor | None:
    """Derivative of `softcap * tanh(s / softcap)` by s, from its values; None without a soft cap."""
    return None if softcap is None else scores_BHrL.div(softcap).square_().neg_().add_(1)


def _add_products(
    grad_scores_BHrL: Tensor, rows: slice, factors: Sequence[Tensor], gradients: Sequence[Tensor]
) -> None:
    """Add a chunk to the gradients of queries and keys, given the gradient of the scores.

    Args:
        factors: queries and keys in the dtype of the gradient of the scores.
        gradients: those of queries and keys, and others.
    """
    (query_BHRd, key_BHLd), keys = factors, slice(grad_scores_BHrL.shape[3])
    gradients[0][:, :, rows] += grad_scores_BHrL @ key_BHLd[:, :, keys]
    gradients[1][:, :, keys] += grad_scores_BHrL.transpose(2, 3) @ query_BHRd[:, :, rows]


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the products: the loss scale that keeps gradients in float16's range is not applied yet."""
    return torch.float32 if dtype == torch.float16 else dtype


def _summed(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32
