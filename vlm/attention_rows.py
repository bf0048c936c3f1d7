"""Chosen rows and columns of an attention matrix, a chunk of rows at a time, forward and backward.

Plain autograd would keep the softmax of every row over all L keys for the backward pass. Here the scores of a chunk are
made again instead, and the slopes along them take their place in the same memory: at most two float32 [B, H, r, L] are
alive at a time, with r rows in a chunk.

Shape letters: B samples, H heads, L positions, R rows, r of a chunk, C columns, d size of a head.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attention_rows(
    query_BHRd: Tensor,
    key_BHLd: Tensor,
    rows_BR: Tensor,
    cols_BC: Tensor,
    *,
    scaling: float,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Softmax over each row's causal keys, then the columns: float32 [B, H, R, C] (float64 of float64).

    Args:
        query_BHRd: queries of the rows, rotated.
        key_BHLd: keys of all positions, rotated.
        rows_BR, cols_BC: int64 positions in 0..L-1.
        scaling: of the scores.
        chunk_bytes: most that one float32 [B, H, r, L] takes, but at least one row's; None takes all rows at once.
    """
    num_rows = query_BHRd.shape[2]
    if chunk_bytes is not None:
        num_rows = max(1, chunk_bytes // (4 * key_BHLd[..., 0].numel()))
    chosen_BHRC: Tensor = _AttentionRows.apply(query_BHRd, key_BHLd, rows_BR, cols_BC, scaling, max(1, num_rows))
    return chosen_BHRC


class _AttentionRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BHRd: Tensor,
        key_BHLd: Tensor,
        rows_BR: Tensor,
        cols_BC: Tensor,
        scaling: float,
        num_rows: int,
    ) -> Tensor:
        ctx.save_for_backward(query_BHRd, key_BHLd, rows_BR, cols_BC)
        ctx.scaling, ctx.num_rows = scaling, num_rows
        parts = []
        for chunk in _chunks(query_BHRd.shape[2], num_rows):
            probs_BHrL = _probabilities(query_BHRd[:, :, chunk], key_BHLd, rows_BR[:, chunk], scaling)
            parts.append(probs_BHrL.gather(3, _columns(cols_BC, probs_BHrL)))
        return torch.cat(parts, dim=2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHRC: Tensor) -> tuple[Tensor | None, ...]:
        query_BHRd, key_BHLd, rows_BR, cols_BC = ctx.saved_tensors
        query_grad_BHRd, key_grad_BHLd = torch.empty_like(query_BHRd), torch.zeros_like(key_BHLd, dtype=grad_BHRC.dtype)
        for chunk in _chunks(query_BHRd.shape[2], ctx.num_rows):
            query_BHrd, grad_BHrC = query_BHRd[:, :, chunk], grad_BHRC[:, :, chunk]
            probs_BHrL = _probabilities(query_BHrd, key_BHLd, rows_BR[:, chunk], ctx.scaling)
            columns_BHrC = _columns(cols_BC, probs_BHrL)
            # of a softmax, where only the columns are looked at: p_l * (g_l - sum over c of p_c * g_c)
            weighed_BHrC = probs_BHrL.gather(3, columns_BHrC) * grad_BHrC
            slopes_BHrL = probs_BHrL.mul_(-weighed_BHrC.sum(-1, keepdim=True)).scatter_add_(
                3, columns_BHrC, weighed_BHrC
            )
            slopes_BHrL = slopes_BHrL.mul_(ctx.scaling).to(key_BHLd.dtype)
            query_grad_BHRd[:, :, chunk] = slopes_BHrL @ key_BHLd
            key_grad_BHLd += slopes_BHrL.transpose(2, 3) @ query_BHrd
        return query_grad_BHRd, key_grad_BHLd.to(key_BHLd.dtype), None, None, None, None


def _chunks(total: int, size: int) -> Iterator[slice]:
    """At least one, which is empty where there are no rows."""
    return (slice(start, start + size) for start in range(0, max(total, 1), size))


def _probabilities(query_BHrd: Tensor, key_BHLd: Tensor, rows_Br: Tensor, scaling: float) -> Tensor:
    """Each row's softmax over the keys that are not after it: [B, H, r, L]."""
    scores_BHrL = query_BHrd @ key_BHLd.transpose(2, 3)
    if scores_BHrL.dtype != torch.float64:
        scores_BHrL = scores_BHrL.float()
    positions_L = torch.arange(key_BHLd.shape[2], device=key_BHLd.device)
    future_B1rL = (positions_L > rows_Br[..., None])[:, None]
    # in place: each further copy would count in full
    return scores_BHrL.mul_(scaling).masked_fill_(future_B1rL, float("-inf")).softmax(dim=-1)


def _columns(cols_BC: Tensor, probs_BHrL: Tensor) -> Tensor:
    return cols_BC[:, None, None, :].expand(-1, *probs_BHrL.shape[1:3], -1)
