"""Chosen rows and columns of an attention matrix, computed in chunks of rows to bound memory.

Shape letters: B samples, H heads, L positions, R rows, r rows of a chunk, C columns, d size of a head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


@torch.no_grad()
def attention_rows(
    query_BHRd: Tensor,
    key_BHLd: Tensor,
    rows_BR: Tensor,
    cols_BC: Tensor,
    *,
    scaling: float,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Softmax over each row's causal keys, then the columns: float32 [B, H, R, C] (float64 for float64), no gradient.

    Args:
        query_BHRd: queries of the rows, rotated.
        key_BHLd: keys of all positions, rotated.
        rows_BR, cols_BC: int64 positions in 0..L-1.
        scaling: scale factor of the scores.
        chunk_bytes: maximum bytes of one float32 [B, H, r, L], but at least one row; None computes all rows at once.
    """
    num_rows = query_BHRd.shape[2]
    if chunk_bytes is not None:
        num_rows = max(1, chunk_bytes // (4 * key_BHLd[..., 0].numel()))
    parts = []
    for chunk in row_chunks(query_BHRd.shape[2], max(1, num_rows)):
        weights_BHrL, sum_BHr1 = attention_weights(
            query_BHRd[:, :, chunk], key_BHLd, rows_BR[:, chunk], cols_BC, scaling
        )
        parts.append(weights_BHrL.gather(3, expanded_columns(cols_BC, weights_BHrL)).div_(sum_BHr1))
        del weights_BHrL  # before the next chunk is computed
    return torch.cat(parts, dim=2)


def row_chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows; one empty slice if there are no rows."""
    return (slice(start, start + size) for start in range(0, max(total, 1), size))


def attention_weights(
    query_BHrd: Tensor, key_BHLd: Tensor, rows_Br: Tensor, cols_BC: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Each row's softmax before division, [B, H, r, L], and its sum, [B, H, r, 1].

    0 for keys after the row. On a CPU, keys after the last needed row or column are left out.
    """
    length = key_BHLd.shape[2]
    if rows_Br.device.type == "cpu" and rows_Br.numel() and cols_BC.numel():  # on other devices this would synchronise
        length = 1 + int(max(rows_Br.max(), cols_BC.max()))
    scores_BHrL = query_BHrd @ key_BHLd[:, :, :length].transpose(2, 3)
    if scores_BHrL.dtype != torch.float64:
        scores_BHrL = scores_BHrL.float()
    positions_L = torch.arange(length, device=key_BHLd.device)
    future_BrL = positions_L > rows_Br[..., None]
    bias_B1rL = torch.zeros_like(future_BrL, dtype=scores_BHrL.dtype).masked_fill_(future_BrL, -torch.inf)[:, None]
    # in place to save copies; the mask is added, because filling through a mask shared by heads takes longer
    scores_BHrL.mul_(scaling).add_(bias_B1rL)
    weights_BHrL = scores_BHrL.sub_(scores_BHrL.amax(-1, keepdim=True)).exp_()
    return weights_BHrL, weights_BHrL.sum(-1, keepdim=True)


def expanded_columns(cols_BC: Tensor, weights_BHrL: Tensor) -> Tensor:
    """The columns in the form that `gather` needs, [B, H, r, C]."""
    return cols_BC[:, None, None, :].expand(-1, *weights_BHrL.shape[1:3], -1)
