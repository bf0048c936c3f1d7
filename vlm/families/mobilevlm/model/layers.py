"""Decoder layers of LLaMA over whole sequences, as `LlamaModel.forward` runs them without mask and cache."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def after_layers(layers: Iterable[nn.Module], rotary_emb: nn.Module, embeds_BLD: Tensor) -> Tensor:
    """Hidden states [B, L, D] after the layers, before a norm.

    Without a mask SDPA is causal, which is all that right-padded sequences need.

    Args:
        layers: with `sdpa` as attention function.
        rotary_emb: their rotary positions.
        embeds_BLD: input of the first layer.
    """
    positions_1L = torch.arange(embeds_BLD.shape[1], device=embeds_BLD.device)[None]
    rotary = rotary_emb(embeds_BLD, position_ids=positions_1L)
    hidden_BLD = embeds_BLD
    for layer in layers:
        hidden_BLD = layer(hidden_BLD, position_ids=positions_1L, position_embeddings=rotary)
    return hidden_BLD
