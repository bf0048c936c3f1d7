"""MobileVLM and related models: CLIP vision tower -> projector -> LLaMA, named as in the official checkpoints."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import DynamicCache, LlamaModel

from alignkd.vlm.families.family import Decoding, Head, Vision, VisionLanguageModel
from alignkd.vlm.families.mobilevlm.model.attention import LlamaAttentionLayer, first_layer_attention, watched_layers
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.layers import after_layers
from alignkd.vlm.families.mobilevlm.model.projector import build_projector
from alignkd.vlm.families.mobilevlm.model.vision_tower import VisionTower
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch, collate_sequences
from alignkd.vlm.inputs.examples import Example


class _Decoder(LlamaModel):  # type: ignore[misc]
    """LLaMA's decoder with the tower and the projector inside, as the original nests them (`model.*`)."""

    def __init__(self, config: VLMConfig) -> None:
        super().__init__(config.llama)
        self.vision_tower = VisionTower(config.vision, config.vision_select_layer)
        self.mm_projector = build_projector(
            config.projector_type, config.vision.hidden_size, config.hidden_size, config.pooled_grid
        )

    def last_states(self, inputs_embeds_BLD: Tensor) -> Tensor:
        """What `forward` returns as `last_hidden_state` without mask and cache."""
        if self.config._attn_implementation != "sdpa":  # its mask is made by transformers
            hidden_BLD: Tensor = self(inputs_embeds=inputs_embeds_BLD, use_cache=False).last_hidden_state
            return hidden_BLD
        # `forward` would wait for the device: it looks whether positions are those of packed sequences
        hidden_BLD = after_layers(self.layers, self.rotary_emb, inputs_embeds_BLD)
        normed_BLD: Tensor = self.norm(hidden_BLD)
        return normed_BLD


class MobileVLM(VisionLanguageModel):
    """One vision-language model; weights are random until loaded.

    Shapes: B samples, I images, L positions, P vision tokens of an image, D hidden size, V vocabulary.
    """

    def __init__(self, config: VLMConfig) -> None:
        super().__init__()
        self._config = config
        self.model = _Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def config(self) -> VLMConfig:
        """Shapes and settings of the model."""
        return self._config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the decoder's activations."""
        return self.lm_head.weight.dtype

    def freeze_vision_tower(self) -> None:
        """Exclude the tower from training (both phases of Align-KD)."""
        self.model.vision_tower.freeze()

    def encode_images(
        self, images: Sequence[ImageTensors], samples: Sequence[int] | None = None, *, features: bool = False
    ) -> Vision:
        """Vision embeddings: output of the vision projector.

        Args:
            images: `pixel_values` [3, H, W] of each image.
            samples: not used; tokens of an image depend on the image alone.
            features: also return the tower's output [I, patches, D_vision].
        """
        features_IND: Tensor = self.model.vision_tower(torch.stack([image["pixel_values"] for image in images]))
        vision = self.project(features_IND)
        return replace(vision, features=features_IND) if features else vision

    def project(self, features_IND: Tensor) -> Vision:
        """Vision embeddings for the tower's output [I, patches, D_vision]."""
        embeddings_IPD: Tensor = self.model.mm_projector(features_IND)
        images, tokens = embeddings_IPD.shape[:2]
        return Vision(embeddings_PD=embeddings_IPD.flatten(0, 1), tokens_of_image=(tokens,) * images)

    def no_image(self) -> Vision:
        """The projector's output for tower features of zeros."""
        shape = (1, self.config.vision_tokens, self.config.vision.hidden_size)
        return self.project(next(self.model.mm_projector.parameters()).new_zeros(shape))

    def embed(self, batch: SequenceBatch, vision: Vision | None) -> Tensor:
        """Token embeddings with the vision embeddings spliced in: [B, L, D]."""
        embeds_BLD: Tensor = self.model.embed_tokens(batch.input_ids_BL)
        return embeds_BLD if vision is None else batch.splice(embeds_BLD, vision.embeddings_PD)

    def hidden_states(self, batch: SequenceBatch, vision: Vision | None) -> Tensor:
        """Last hidden states [B, L, D] after the final norm."""
        return self.decoder_states(self.embed(batch, vision))

    def decoder_states(self, inputs_embeds_BLD: Tensor) -> Tensor:
        """Last hidden states [B, L, D] for spliced embeddings; causal, so right padding needs no mask."""
        return self.model.last_states(inputs_embeds_BLD)

    def first_layer_attention(
        self, inputs_embeds_BLD: Tensor, rows_BR: Tensor, cols_BC: Tensor, *, chunk_bytes: int | None = None
    ) -> Tensor:
        """Layer 0 attention of chosen rows to chosen columns: float32 [B, H, R, C]; see `attention.py`."""
        return first_layer_attention(self.model, inputs_embeds_BLD, rows_BR, cols_BC, chunk_bytes=chunk_bytes)

    def watched_layers(self, layers: Sequence[int]) -> AbstractContextManager[Mapping[int, LlamaAttentionLayer]]:
        """Record queries and keys, with gradient, when the decoder runs inside; see `attention.py`."""
        return watched_layers(self.model, layers)

    @property
    def head(self) -> Head:
        """`lm_head`, which has neither bias nor soft cap."""
        return Head(weight_VD=self.lm_head.weight)

    @property
    def projector_prefixes(self) -> tuple[str, ...]:
        """Prefix of the projector's parameters."""
        return ("model.mm_projector.",)

    @property
    def decoder(self) -> nn.Module:
        """LLaMA without its head."""
        return self.model

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """LLaMA's layers."""
        return tuple(self.model.layers)

    @torch.no_grad()
    def decoding(self, prompts: Sequence[Example], vision: Vision | None = None) -> Decoding:
        """Logits of next tokens; see `VisionLanguageModel.decoding`. Shorter prompts are padded left."""
        batch = collate_sequences(prompts).padded_left()
        mask_BL = batch.attention_mask_BL.to(self.device) if batch.is_padded else None
        batch = batch.to(self.device)
        positions_BL = (batch.attention_mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        if vision is None and batch.images:
            vision = self.encode_images(batch.images)
        inputs_embeds = self.embed(batch, vision)
        cache = DynamicCache(config=self.config.llama)
        while True:
            output = self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=mask_BL,
                position_ids=positions_BL,
                past_key_values=cache,
                use_cache=True,
            )
            tokens_B = yield self.lm_head(output.last_hidden_state[:, -1])
            inputs_embeds = self.model.embed_tokens(tokens_B[:, None])
            positions_BL = positions_BL[:, -1:] + 1
            if mask_BL is not None:
                mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(mask_BL), 1)], dim=1)

    def forward(self, batch: SequenceBatch) -> Tensor:
        """Logits [N, V] at the supervised positions of the batch, in row-major order."""
        hidden_BLD = self.hidden_states(batch, self.encode_images(batch.images) if batch.images else None)
        logits_NV: Tensor = self.lm_head(hidden_BLD[batch.supervised_mask_BL])
        return logits_NV
