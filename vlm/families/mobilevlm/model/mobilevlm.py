"""MobileVLM and related models: CLIP vision tower -> projector -> LLaMA, named as in the official checkpoints."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from transformers import LlamaModel

from alignkd.vlm.families.mobilevlm.model.attention import FirstLayer, first_layer_attention, watched_first_layer
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.projector import build_projector
from alignkd.vlm.families.mobilevlm.model.vision_tower import VisionTower
from alignkd.vlm.inputs.batch import SequenceBatch


class _Decoder(LlamaModel):  # type: ignore[misc]
    """LLaMA's decoder with the tower and the projector inside, as the original nests them (`model.*`)."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.llama)
        self.vision_tower = VisionTower(config.vision, config.vision_select_layer)
        self.mm_projector = build_projector(
            config.projector_type, config.vision.hidden_size, config.hidden_size, config.pooled_grid
        )


class MobileVLM(nn.Module):
    """One vision-language model; weights are random until loaded.

    Shapes: B samples, I images, L positions, P vision tokens, D hidden size, V vocabulary.
    """

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def freeze_vision_tower(self) -> None:
        """Exclude the tower from training (both phases of Align-KD)."""
        self.model.vision_tower.freeze()

    def encode_images(self, pixel_values_ICHW: Tensor) -> Tensor:
        """Vision embeddings [I, P, D]: output of the vision projector."""
        embeddings_IPD: Tensor = self.model.mm_projector(self.model.vision_tower(pixel_values_ICHW))
        return embeddings_IPD

    def embed(self, batch: SequenceBatch, vision_embeddings_IPD: Tensor | None) -> Tensor:
        """Token embeddings with the vision embeddings spliced in: [B, L, D]."""
        embeds_BLD: Tensor = self.model.embed_tokens(batch.input_ids_BL)
        if vision_embeddings_IPD is None:
            return embeds_BLD
        vision = vision_embeddings_IPD.to(embeds_BLD.dtype)
        return embeds_BLD.masked_scatter(batch.vision_mask_BL[..., None], vision)

    def hidden_states(self, inputs_embeds_BLD: Tensor) -> Tensor:
        """Last hidden states [B, L, D] after the final norm; causal, so right padding needs no mask."""
        hidden_BLD: Tensor = self.model(inputs_embeds=inputs_embeds_BLD, use_cache=False).last_hidden_state
        return hidden_BLD

    def first_layer_attention(
        self, inputs_embeds_BLD: Tensor, rows_BR: Tensor, cols_BC: Tensor, *, chunk_bytes: int | None = None
    ) -> Tensor:
        """Layer 0 attention of chosen rows to chosen columns: float32 [B, H, R, C]; see `attention.py`."""
        return first_layer_attention(self.model, inputs_embeds_BLD, rows_BR, cols_BC, chunk_bytes=chunk_bytes)

    def watched_first_layer(self) -> AbstractContextManager[FirstLayer]:
        """Record layer 0's queries and keys, with gradient, when `hidden_states` runs inside; see `attention.py`."""
        return watched_first_layer(self.model)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits [N, V] at the supervised positions of the batch, in row-major order."""
        vision = None if batch.pixel_values_ICHW is None else self.encode_images(batch.pixel_values_ICHW)
        hidden_BLD = self.hidden_states(self.embed(batch, vision))
        logits_NV: Tensor = self.lm_head(hidden_BLD[batch.supervised_mask_BL])
        return logits_NV

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.lm_head.weight.device
