"""Chosen rows and columns of an attention matrix, computed in chunks of rows to bound memory.

Shape letters: B samples, H heads, L positions, R rows, r rows of a chunk, C columns, d size of a head.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

# Bytes of float32 [B, H, r, L] that are computed at a time. A CPU is fastest with what stays in its cache. Elsewhere a
# chunk costs kernels and not cache, so it is as large as the memory of a small card allows.
CHUNK_BYTES_CPU = 8 << 20
CHUNK_BYTES = 256 << 20


def chunk_bytes_on(device_type: str) -> int:
    """Bytes of the rows that are computed at a time on a kind of device, such as `cpu` or `cuda`."""
    return CHUNK_BYTES_CPU if device_type == "cpu" else CHUNK_BYTES


@dataclass(frozen=True, kw_only=True)
class RowInputs:
    """Everything that the attention of some rows depends on.

    Attributes:
        query_BHRd: queries of the rows, with their positions applied.
        key_BHLd: keys of all positions, repeated for each query head.
        rows_BR: int64 positions of the rows, 0 where padded.
        scaling: factor of the scores.
        softcap: scores s become `softcap * tanh(s / softcap)` before the mask; None: unchanged.
        visible_BRL: bool, the keys that each row attends to; None: all keys up to the row itself.
    """

    query_BHRd: Tensor
    key_BHLd: Tensor
    rows_BR: Tensor
    scaling: float
    softcap: float | None = None
    visible_BRL: Tensor | None = None

    def contiguous(self) -> Self:
        """The same inputs with queries and keys in the order of their axes.

        Rotated keys often keep the order [B, L, H, d] of the projection. `matmul` copies such keys for each product, so
        every chunk of rows would copy all of them.
        """
        return replace(self, query_BHRd=self.query_BHRd.contiguous(), key_BHLd=self.key_BHLd.contiguous())

    def chunk(self, rows: slice) -> Self:
        """The inputs of some of the rows."""
        visible = None if self.visible_BRL is None else self.visible_BRL[:, rows]
        return replace(self, query_BHRd=self.query_BHRd[:, :, rows], rows_BR=self.rows_BR[:, rows], visible_BRL=visible)


@torch.no_grad()
def attention_rows(inputs: RowInputs, cols_BC: Tensor, *, chunk_bytes: int | None = None) -> Tensor:
    """Softmax over each row's visible keys, then the columns: float32 [B, H, R, C] (float64 for float64), no gradient.

    Args:
        inputs: queries, keys and mask.
        cols_BC: int64 positions in 0..L-1.
        chunk_bytes: maximum bytes of one float32 [B, H, r, L], but at least one row; None computes all rows at once.
    """
    inputs = inputs.contiguous()
    num_rows = inputs.query_BHRd.shape[2]
    if chunk_bytes is not None:
        num_rows = max(1, chunk_bytes // (4 * inputs.key_BHLd[..., 0].numel()))
    parts = []
    for chunk in row_chunks(inputs.query_BHRd.shape[2], max(1, num_rows)):
        weights_BHrL, sum_BHr1 = attention_weights(inputs.chunk(chunk), cols_BC)
        parts.append(weights_BHrL.gather(3, expanded_columns(cols_BC, weights_BHrL)).div_(sum_BHr1))
        del weights_BHrL  # before the next chunk is computed
    return torch.cat(parts, dim=2)


def selected_rows(values_BLx: Tensor, rows_BR: Tensor, samples_B: Tensor | None = None) -> Tensor:
    """[B, L, ...] -> [B, R, ...], with gradient.

    Args:
        rows_BR: int64 positions in 0..L-1.
        samples_B: int64, the sample of each row of `rows_BR`; None: sample b for row b.
    """
    if samples_B is None:
        samples_B = torch.arange(len(rows_BR), device=rows_BR.device)
    places_N = (samples_B[:, None] * values_BLx.shape[1] + rows_BR).flatten()
    # whole rows: `gather` would need an index of the size of the result, and scatter single numbers backward
    selected_BRx: Tensor = values_BLx.flatten(0, 1).index_select(0, places_N).unflatten(0, rows_BR.shape)
    return selected_BRx


def row_chunks(total: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows; one empty slice if there are no rows."""
    return (slice(start, start + size) for start in range(0, max(total, 1), size))


def attention_weights(inputs: RowInputs, cols_BC: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's softmax before division, [B, H, r, L], and its sum, [B, H, r, 1].

    0 for keys that the row does not attend to. On a CPU, keys after the last needed row or column are left out if rows
    attend to no later keys.
    """
    return weights_of_scores(attention_scores(inputs, cols_BC), inputs)


def attention_scores(inputs: RowInputs, cols_BC: Tensor) -> Tensor:
    """The scores before the mask, float32 [B, H, r, L]; see `attention_weights` for the keys that are left out."""
    rows_Br, key_BHLd = inputs.rows_BR, inputs.key_BHLd
    length = key_BHLd.shape[2]
    is_causal = inputs.visible_BRL is None
    # on other devices this would synchronise
    if is_causal and rows_Br.device.type == "cpu" and rows_Br.numel() and cols_BC.numel():
        length = 1 + int(max(rows_Br.max(), cols_BC.max()))
    scores_BHrL = inputs.query_BHRd @ key_BHLd[:, :, :length].transpose(2, 3)
    if scores_BHrL.dtype != torch.float64:
        scores_BHrL = scores_BHrL.float()
    # in place to save copies
    scores_BHrL.mul_(inputs.scaling)
    if inputs.softcap is not None:
        scores_BHrL.div_(inputs.softcap).tanh_().mul_(inputs.softcap)
    return scores_BHrL


def weights_of_scores(scores_BHrL: Tensor, inputs: RowInputs) -> tuple[Tensor, Tensor]:
    """`attention_weights` in the memory of the scores."""
    mask_scores(scores_BHrL, inputs)
    weights_BHrL = scores_BHrL.sub_(scores_BHrL.amax(-1, keepdim=True)).exp_()
    return weights_BHrL, weights_BHrL.sum(-1, keepdim=True)


def mask_scores(scores_BHrL: Tensor, inputs: RowInputs) -> None:
    """Set the scores of the keys that a row does not attend to to -inf, in place."""
    if inputs.visible_BRL is None:
        hidden_BrL = torch.arange(scores_BHrL.shape[3], device=scores_BHrL.device) > inputs.rows_BR[..., None]
    else:
        hidden_BrL = ~inputs.visible_BRL
    # the mask is added, because filling through a mask shared by heads takes longer
    bias_B1rL = torch.zeros_like(hidden_BrL, dtype=scores_BHrL.dtype).masked_fill_(hidden_BrL, -torch.inf)[:, None]
    scores_BHrL.add_(bias_B1rL)


def expanded_columns(cols_BC: Tensor, weights_BHrL: Tensor) -> Tensor:
    """The columns in the form that `gather` needs, [B, H, r, C]."""
    return cols_BC[:, None, None, :].expand(-1, *weights_BHrL.shape[1:3], -1)
