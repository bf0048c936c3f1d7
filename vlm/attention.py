"""Softmaxed attention of the FIRST decoder layer for chosen queries and keys only (paper eq. 1, `A_HQP`).

The input of layer 0 is the spliced embedding sequence itself, so its queries and keys follow from the embeddings,
the layer's input norm, `W_q`, `W_k` and rotary positions. Nothing else of the model runs, and the [H, L, L] matrix
is never built. Where the whole model runs anyway, `keep_projections` takes what it makes on its way.

Shape letters: B samples, L positions, R rows, C columns, D hidden size, H heads, d size of a head, E = H * d (of keys
with their own number of heads).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import rotate_half

from vlm.attention_rows import attention_rows


def first_layer_attention(
    model: LlamaModel,
    inputs_embeds_BLD: Tensor,
    rows_BR: Tensor,
    cols_BC: Tensor,
    *,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Attention of rows to columns: float32 [B, H, R, C], differentiable.

    Each row is a softmax over ALL its causal keys; the columns are selected afterwards, so rows sum to at most 1.

    Args:
        model: the LLaMA decoder.
        inputs_embeds_BLD: spliced embeddings, right-padded.
        rows_BR, cols_BC: int64 positions in 0..L-1; pad with 0 and mask the result.
        chunk_bytes: take so few rows at a time (at least one) that their float32 [B, H, r, L] needs at most this; None
            takes all rows at once. The backward pass computes them again instead of keeping them.
    """
    layer = model.layers[0]
    hidden_BLD = layer.input_layernorm(inputs_embeds_BLD)
    rows_hidden_BRD = hidden_BLD.gather(1, rows_BR[..., None].expand(-1, -1, hidden_BLD.shape[-1]))
    query_BRE, key_BLE = layer.self_attn.q_proj(rows_hidden_BRD), layer.self_attn.k_proj(hidden_BLD)
    return attention_of_projections(model, query_BRE, key_BLE, rows_BR, cols_BC, chunk_bytes=chunk_bytes)


@contextmanager
def keep_projections(model: LlamaModel) -> Iterator[dict[str, Tensor]]:
    """Keeps what the first layer's `W_q` and `W_k` give in a forward pass: [B, L, E], by "query" and "key"."""
    attention = model.layers[0].self_attn
    kept: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            kept[name] = output

        return keep

    hooks = [
        module.register_forward_hook(keeper(name))
        for name, module in (("query", attention.q_proj), ("key", attention.k_proj))
    ]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


def attention_of_projections(
    model: LlamaModel,
    query_BRE: Tensor,
    key_BLE: Tensor,
    rows_BR: Tensor,
    cols_BC: Tensor,
    *,
    chunk_bytes: int | None = None,
) -> Tensor:
    """`first_layer_attention` of queries and keys before their rotation; queries are those of the rows."""
    attention = model.layers[0].self_attn
    num, length, _ = key_BLE.shape
    query_BHRd = query_BRE.view(num, rows_BR.shape[1], -1, attention.head_dim).transpose(1, 2)
    key_BHLd = key_BLE.view(num, length, -1, attention.head_dim).transpose(1, 2)

    positions_L = torch.arange(length, device=key_BLE.device)
    cos_1Ld, sin_1Ld = model.rotary_emb(key_BLE, position_ids=positions_L[None])
    key_BHLd = _rotate(key_BHLd, cos_1Ld[:, None], sin_1Ld[:, None])
    query_BHRd = _rotate(query_BHRd, cos_1Ld[0, rows_BR][:, None], sin_1Ld[0, rows_BR][:, None])
    key_BHLd = key_BHLd.repeat_interleave(query_BHRd.shape[1] // key_BHLd.shape[1], dim=1)

    return attention_rows(query_BHRd, key_BHLd, rows_BR, cols_BC, scaling=attention.scaling, chunk_bytes=chunk_bytes)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated: Tensor = x * cos + rotate_half(x) * sin
    return rotated
