"""Softmaxed attention of decoder layers for chosen queries and keys only (paper eq. 1, `A_HQP`).

The [H, L, L] matrix is never built. If the decoder runs, the queries and keys of the wanted layers are recorded. The
input of layer 0 is the spliced embedding sequence, so its queries and keys follow from the embeddings, the layer's
input norm, `W_q`, `W_k` and rotary positions: for this layer alone, the rest of the model need not run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaModel
from transformers.models.llama.modeling_llama import rotate_half

from alignkd.vlm.attention.attention_rows import RowInputs, attention_rows, selected_rows
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.kernels.layer_run import watched


def first_layer_attention(
    model: LlamaModel,
    inputs_embeds_BLD: Tensor,
    rows_BR: Tensor,
    cols_BC: Tensor,
    *,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Attention of rows to columns: float32 [B, H, R, C], without gradient.

    Each row is a softmax over ALL its causal keys; the columns are selected afterwards, so rows sum to at most 1.

    Args:
        model: the LLaMA decoder.
        inputs_embeds_BLD: spliced embeddings, right-padded.
        rows_BR, cols_BC: int64 positions in 0..L-1; pad with 0 and mask the result.
        chunk_bytes: maximum bytes of the float32 [B, H, r, L] of the rows computed at a time (at least one row); None
            computes all rows at once.
    """
    return attention_rows(row_inputs_of_layer(model, 0, inputs_embeds_BLD, rows_BR), cols_BC, chunk_bytes=chunk_bytes)


@torch.no_grad()
def row_inputs_of_layer(model: LlamaModel, number: int, inputs_BLD: Tensor, rows_BR: Tensor) -> RowInputs:
    """Rotated queries of rows [B, H, R, d] and keys of all positions [B, H, L, d], without gradient.

    Args:
        inputs_BLD: input of layer `number`, before its norm.
    """
    layer = model.layers[number]
    attention = layer.self_attn
    hidden_BLD = layer.input_layernorm(inputs_BLD)
    query_BRD, key_BLD = attention.q_proj(selected_rows(hidden_BLD, rows_BR)), attention.k_proj(hidden_BLD)
    query_BHRd, key_BHLd = _rotated(model, query_BRD, key_BLD, rows_BR)
    return RowInputs(query_BHRd=query_BHRd, key_BHLd=key_BHLd, rows_BR=rows_BR, scaling=float(attention.scaling))


@dataclass
class LlamaAttentionLayer(AttentionLayer):
    """Queries [B, L, H * d] and keys [B, L, Hk * d] of a layer before rotation, set by a decoder pass."""

    model: LlamaModel
    number: int
    query_BLD: Tensor | None = None
    key_BLD: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """B, number of samples."""
        assert self.key_BLD is not None
        return len(self.key_BLD)

    def row_inputs(self, rows_BR: Tensor, samples_B: Tensor | None = None) -> RowInputs:
        """Rotated queries of rows [B, H, R, d] and keys of all positions [B, H, L, d] of these samples."""
        assert self.query_BLD is not None and self.key_BLD is not None
        key_BLD = self.key_BLD if samples_B is None else self.key_BLD[samples_B]
        query_BRD = selected_rows(self.query_BLD, rows_BR, samples_B)
        query_BHRd, key_BHLd = _rotated(self.model, query_BRD, key_BLD, rows_BR)
        scaling = float(self.model.layers[self.number].self_attn.scaling)
        return RowInputs(query_BHRd=query_BHRd, key_BHLd=key_BHLd, rows_BR=rows_BR, scaling=scaling)


@contextmanager
def watched_layers(model: LlamaModel, numbers: Sequence[int]) -> Iterator[dict[int, LlamaAttentionLayer]]:
    """Record queries and keys of layers in the yielded objects when the decoder runs inside the block."""
    layers = {number: LlamaAttentionLayer(model, number) for number in numbers}
    hooks = [
        projection.register_forward_hook(lambda _, __, output, layer=layer, field=field: setattr(layer, field, output))
        for number, layer in layers.items()
        for projection, field in _projections(model, number)
    ]
    try:
        with watched([model.layers[number] for number in numbers]):
            yield layers
    finally:
        for hook in hooks:  # before the backward pass, in which gradient checkpointing runs the layer again
            hook.remove()


def _projections(model: LlamaModel, number: int) -> list[tuple[nn.Module, str]]:
    """The modules whose outputs a layer's object keeps, with the names of its fields."""
    attention = model.layers[number].self_attn
    return [(attention.q_proj, "query_BLD"), (attention.k_proj, "key_BLD")]


def _rotated(model: LlamaModel, query_BRD: Tensor, key_BLD: Tensor, rows_BR: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys by head with rotary positions, contiguous; keys are repeated for each query head."""
    head_dim = model.layers[0].self_attn.head_dim
    # elementwise operations keep the order of axes in memory, which is that of `RowInputs.contiguous` from here on
    query_BHRd, key_BHLd = (
        values.unflatten(-1, (-1, head_dim)).transpose(1, 2).contiguous() for values in (query_BRD, key_BLD)
    )
    positions_L = torch.arange(key_BLD.shape[1], device=key_BLD.device)
    cos_1Ld, sin_1Ld = model.rotary_emb(key_BLD, position_ids=positions_L[None])
    key_BHLd = _rotate(key_BHLd, cos_1Ld[:, None], sin_1Ld[:, None])
    query_BHRd = _rotate(query_BHRd, cos_1Ld[0, rows_BR][:, None], sin_1Ld[0, rows_BR][:, None])
    if (shared := query_BHRd.shape[1] // key_BHLd.shape[1]) > 1:
        key_BHLd = key_BHLd.repeat_interleave(shared, dim=1)
    return query_BHRd, key_BHLd


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated: Tensor = x * cos + rotate_half(x) * sin
    return rotated
