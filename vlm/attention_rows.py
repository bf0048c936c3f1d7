"""Chosen rows and columns of an attention matrix, a chunk of rows at a time, forward and backward.

Plain autograd would keep the softmax of every row over all L keys for the backward pass. Here the scores of a chunk are
made again instead, from each row's normaliser, and the slopes along them take their place in the same memory: ONE
float32 [B, H, r, L] is alive at a time, with r rows in a chunk.

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
        parts, normalisers = [], []
        for chunk in _chunks(query_BHRd.shape[2], num_rows):
            scores_BHrL = _scores(query_BHRd[:, :, chunk], key_BHLd, rows_BR[:, chunk], cols_BC, scaling)
            highest_BHr1 = scores_BHrL.amax(-1, keepdim=True)
            weights_BHrL = scores_BHrL.sub_(highest_BHr1).exp_()
            sum_BHr1 = weights_BHrL.sum(-1, keepdim=True)
            parts.append(weights_BHrL.gather(3, _columns(cols_BC, weights_BHrL)).div_(sum_BHr1))
            normalisers.append(sum_BHr1.log_().add_(highest_BHr1))
        chosen_BHRC = torch.cat(parts, dim=2)
        ctx.save_for_backward(query_BHRd, key_BHLd, rows_BR, cols_BC, chosen_BHRC, torch.cat(normalisers, dim=2))
        ctx.scaling, ctx.num_rows = scaling, num_rows
        return chosen_BHRC

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BHRC: Tensor) -> tuple[Tensor | None, ...]:
        query_BHRd, key_BHLd, rows_BR, cols_BC, chosen_BHRC, normalisers_BHR1 = ctx.saved_tensors
        query_grad_BHRd, key_grad_BHLd = torch.empty_like(query_BHRd), torch.zeros_like(key_BHLd, dtype=grad_BHRC.dtype)
        # of a softmax, where only the columns are looked at: p_l * (g_l - sum over c of p_c * g_c)
        weighed_BHRC = (chosen_BHRC * grad_BHRC).mul_(ctx.scaling)
        fall_BHR1 = weighed_BHRC.sum(-1, keepdim=True).neg_()
        for chunk in _chunks(query_BHRd.shape[2], ctx.num_rows):
            query_BHrd = query_BHRd[:, :, chunk]
            slopes_BHrL = _scores(query_BHrd, key_BHLd, rows_BR[:, chunk], cols_BC, ctx.scaling)
            slopes_BHrL.sub_(normalisers_BHR1[:, :, chunk]).exp_().mul_(fall_BHR1[:, :, chunk])
            slopes_BHrL.scatter_add_(3, _columns(cols_BC, slopes_BHrL), weighed_BHRC[:, :, chunk])
            slopes_BHrL, keys = slopes_BHrL.to(key_BHLd.dtype), slice(slopes_BHrL.shape[3])
            query_grad_BHRd[:, :, chunk] = slopes_BHrL @ key_BHLd[:, :, keys]
            key_grad_BHLd[:, :, keys] += slopes_BHrL.transpose(2, 3) @ query_BHrd
        return query_grad_BHRd, key_grad_BHLd.to(key_BHLd.dtype), None, None, None, None


def _chunks(total: int, size: int) -> Iterator[slice]:
    """At least one, which is empty where there are no rows."""
    return (slice(start, start + size) for start in range(0, max(total, 1), size))


def _scores(query_BHrd: Tensor, key_BHLd: Tensor, rows_Br: Tensor, cols_BC: Tensor, scaling: float) -> Tensor:
    """What each row's softmax is of, -inf for keys after it: [B, H, r, L], on a host without keys that none can see."""
    length = key_BHLd.shape[2]
    if rows_Br.device.type == "cpu" and rows_Br.numel():  # elsewhere it would mean to wait for the device
        length = 1 + int(max(rows_Br.max(), cols_BC.max())) if cols_BC.numel() else length
    scores_BHrL = query_BHrd @ key_BHLd[:, :, :length].transpose(2, 3)
    if scores_BHrL.dtype != torch.float64:
        scores_BHrL = scores_BHrL.float()
    positions_L = torch.arange(length, device=key_BHLd.device)
    future_BrL = positions_L > rows_Br[..., None]
    bias_B1rL = torch.zeros_like(future_BrL, dtype=scores_BHrL.dtype).masked_fill_(future_BrL, -torch.inf)[:, None]
    # in place: each further copy would count in full; added, as filling through a mask shared by heads takes longer
    return scores_BHrL.mul_(scaling).add_(bias_B1rL)


def _columns(cols_BC: Tensor, scores_BHrL: Tensor) -> Tensor:
    return cols_BC[:, None, None, :].expand(-1, *scores_BHrL.shape[1:3], -1)
