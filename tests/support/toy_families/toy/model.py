"""Embeddings, one causal attention layer, a head with a soft cap."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.vlm.attention.attention_rows import RowInputs
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Decoding, Head, Vision, VisionLanguageModel
from alignkd.vlm.inputs.batch import ImageTensors, SequenceBatch, collate_sequences, true_places
from alignkd.vlm.inputs.examples import Example

TOWER_WIDTH = 6
SOFTCAP = 20.0


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    hidden_size: int
    num_heads: int
    vocab_size: int
    vision_tokens: None = None
    num_layers: int = 1
    attention_layers: tuple[int, ...] = (0,)
    attention_layer: int = 0
    max_positions: int = 512
    pads_vocabulary: bool = True


class _Layer(nn.Module):
    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(size, size, bias=False) for _ in range(4))

    def forward(self, states_BLD: Tensor) -> Tensor:
        queries, keys, values = (
            self.by_head(project(states_BLD)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return states_BLD + self.o_proj(mixed.transpose(1, 2).flatten(2))

    def by_head(self, values_BLD: Tensor) -> Tensor:
        return values_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class ToyModel(VisionLanguageModel):
    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self._config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_positions = nn.Embedding(config.max_positions, config.hidden_size)
        self.tower, self.projector = nn.Linear(3, TOWER_WIDTH), nn.Linear(TOWER_WIDTH, config.hidden_size)
        self.layers = nn.ModuleList([_Layer(config.hidden_size, config.num_heads)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def config(self) -> ToyConfig:
        return self._config

    @property
    def device(self) -> torch.device:
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype

    def freeze_vision_tower(self) -> None:
        self.tower.requires_grad_(False)

    def encode_images(
        self, images: Sequence[ImageTensors], samples: Sequence[int] | None = None, *, features: bool = False
    ) -> Vision:
        columns_P3 = torch.cat([image["columns"] for image in images]).to(self.dtype)
        features_PD = torch.tanh(self.tower(columns_P3))
        vision = Vision(
            embeddings_PD=self.projector(features_PD), tokens_of_image=tuple(len(image["columns"]) for image in images)
        )
        return replace(vision, features=features_PD) if features else vision

    def no_image(self) -> Vision:
        return self.encode_images([{"columns": torch.zeros(1, 3, device=self.device)}])

    def hidden_states(self, batch: SequenceBatch, vision: Vision | None) -> Tensor:
        assert torch.equal(batch.types["is_image"].bool(), batch.vision_mask_BL)
        embeds_BLD = self.embed_tokens(batch.input_ids_BL)
        if vision is not None:
            embeds_BLD = embeds_BLD.masked_scatter(batch.vision_mask_BL[..., None], vision.embeddings_PD)
        places_L = torch.arange(embeds_BLD.shape[1], device=self.device)
        states_BLD: Tensor = self.layers[0](embeds_BLD + self.embed_positions(places_L))
        return states_BLD

    @contextmanager
    def watched_layers(self, layers: Sequence[int]) -> Iterator[dict[int, "ToyAttentionLayer"]]:
        assert list(layers) == [0]
        first, layer = ToyAttentionLayer(), self.layers[0]
        assert isinstance(layer, _Layer)

        def keep(name: str) -> Any:
            return lambda _, __, output: setattr(first, name, layer.by_head(output))

        hooks = [
            layer.q_proj.register_forward_hook(keep("query_BHLd")),
            layer.k_proj.register_forward_hook(keep("key_BHLd")),
        ]
        try:
            yield {0: first}
        finally:
            for hook in hooks:
                hook.remove()

    @property
    def head(self) -> Head:
        return Head(weight_VD=self.lm_head.weight, softcap=SOFTCAP)

    @property
    def projector_prefixes(self) -> tuple[str, ...]:
        return ("projector.",)

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        return tuple(self.layers)

    @torch.no_grad()
    def decoding(self, prompts: Sequence[Example], vision: Vision | None = None) -> Decoding:
        """The whole sequences again for every token."""
        batch = collate_sequences(prompts).to(self.device)
        if vision is None and batch.images:
            vision = self.encode_images(batch.images)
        rows_B = torch.arange(len(prompts), device=self.device)
        while True:
            tokens_B = yield self.head(self.hidden_states(batch, vision)[rows_B, batch.lengths_B - 1])
            batch = _longer(batch, tokens_B)


@dataclass
class ToyAttentionLayer(AttentionLayer):
    query_BHLd: Tensor | None = None
    key_BHLd: Tensor | None = None

    @property
    def num_samples(self) -> int:
        assert self.key_BHLd is not None
        return len(self.key_BHLd)

    def row_inputs(self, rows_BR: Tensor, samples_B: Tensor | None = None) -> RowInputs:
        assert self.query_BHLd is not None and self.key_BHLd is not None
        chosen = slice(None) if samples_B is None else samples_B
        queries, keys = self.query_BHLd[chosen], self.key_BHLd[chosen]
        index = rows_BR[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3])
        return RowInputs(
            query_BHRd=queries.gather(2, index), key_BHLd=keys, rows_BR=rows_BR, scaling=queries.shape[3] ** -0.5
        )


def _longer(batch: SequenceBatch, tokens_B: Tensor) -> SequenceBatch:
    """The batch with a token at the end of each sample, and the padding after it."""

    def widened(values_BL: Tensor) -> Tensor:
        return nn.functional.pad(values_BL, (0, 1))

    return replace(
        batch,
        input_ids_BL=widened(batch.input_ids_BL).scatter(1, batch.lengths_B[:, None], tokens_B[:, None]),
        labels_BL=widened(batch.labels_BL),
        vision_mask_BL=(mask_BL := widened(batch.vision_mask_BL)),
        vision_places_P=true_places(mask_BL),
        lengths_B=batch.lengths_B + 1,
        types={"is_image": widened(batch.types["is_image"])},
    )
