"""The stem of a MobileVLM teacher: the tensors that give its vision embeddings and the attention of its first layers.

Vision embeddings are the projector's output for features of the frozen tower, which the student computes anyway if
both share the tower. A layer's attention depends on the layer's input, its input norm, `W_q`, `W_k` and rotary
positions. The input of layer 0 is the spliced embeddings. So a stem of depth 1 has no whole layer; a stem of depth k
has layers 0..k-2 whole. These tensors give the targets exactly, with the same operations as the live teacher.

Shapes: B samples, L positions, I images, P vision tokens of all images, R rows, C columns, Ht heads, Dt hidden size, V
vocabulary, N supervised positions, d size of a head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from alignkd.vlm.attention.attention_rows import RowInputs
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Head, Vision
from alignkd.vlm.families.mobilevlm.model.attention import first_layer_attention, row_inputs_of_layer, watched_layers
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.layers import after_layers
from alignkd.vlm.families.mobilevlm.model.projector import build_projector
from alignkd.vlm.families.stem import EmbeddingTable, Stem, TextRows
from alignkd.vlm.inputs.batch import SequenceBatch

EMBEDDING_KEY = "model.embed_tokens.weight"


class TeacherStem(Stem):
    """The frozen stem of a teacher. Its tensors are buffers with the parameter names of the checkpoint.

    They are buffers so that optimisers and code that casts or partitions parameters ignore them.

    Attributes:
        config: configuration of the teacher.
        table: token embeddings.
    """

    lm_head: nn.Linear | None

    def __init__(self, config: VLMConfig, weights: Mapping[str, Tensor], *, depth: int = 1) -> None:
        """`weights` are those named by `stem_shapes`; `.to(device)` moves all but the embeddings."""
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.model = _StemDecoder(config, depth, with_norm="model.norm.weight" in weights)
            has_head = "lm_head.weight" in weights
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False) if has_head else None
        self.table = EmbeddingTable(weights[EMBEDDING_KEY])
        self.load_state_dict({key: value for key, value in weights.items() if key != EMBEDDING_KEY}, assign=True)
        self.model.rotary_emb = LlamaRotaryEmbedding(config=config.llama)  # computed on the CPU on every machine
        _freeze(self)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and the arithmetic."""
        return self.model.get_buffer("layers.0.self_attn.q_proj.weight").dtype

    @torch.no_grad()
    def vision_embeddings(self, features_IND: Tensor) -> Tensor:
        """The teacher's [P, Dt], image by image, for `Vision.features`: [I, patches, D_vision] of any dtype."""
        embeddings_IPD: Tensor = self.model.mm_projector(features_IND.to(self.dtype))
        return embeddings_IPD.flatten(0, 1)

    def vision(self, features: Any) -> Vision:
        """The teacher's encoded images; see `Stem.vision`."""
        embeddings_PD = self.vision_embeddings(features)
        return Vision(
            embeddings_PD=embeddings_PD, tokens_of_image=(len(embeddings_PD) // len(features),) * len(features)
        )

    @property
    def depth(self) -> int:
        """See `Stem.depth`."""
        return len(self.model.layers)

    @property
    def attention_layer(self) -> int:
        """See `Stem.attention_layer`."""
        return self.config.attention_layer

    @torch.no_grad()
    def attention_layers(
        self, batch: SequenceBatch, text: TextRows, vision: Vision | None, layers: Sequence[int]
    ) -> dict[int, AttentionLayer]:
        """Layers of the teacher; see `Stem.attention_layers`. Layers after the last one asked for do not run."""
        assert layers and max(layers) < self.depth, (layers, self.depth)
        last = max(layers)
        embeds_BLD = self.embed(text, batch, None if vision is None else vision.embeddings_PD)
        with watched_layers(self.model, [number for number in layers if number < last]) as found:
            inputs_BLD = self.model.inputs_of(last, embeds_BLD)
        return {**found, last: _LayerOfInputs(self.model, last, inputs_BLD)}

    @torch.no_grad()
    def embed(self, text: TextRows, batch: SequenceBatch, vision_embeddings_PD: Tensor | None) -> Tensor:
        """The input of the teacher's first layer [B, L, Dt]; `text` are the rows of `batch.input_ids_BL`."""
        embeds_BLD = text.rows_UD[text.index_BL]
        return embeds_BLD if vision_embeddings_PD is None else batch.splice(embeds_BLD, vision_embeddings_PD)

    @torch.no_grad()
    def first_layer_attention(
        self, inputs_embeds_BLD: Tensor, rows_BR: Tensor, cols_BC: Tensor, *, chunk_bytes: int | None = None
    ) -> Tensor:
        """The teacher's attention, float32 [B, Ht, R, C]; see `alignkd.vlm.families.mobilevlm.model.attention`."""
        return first_layer_attention(self.model, inputs_embeds_BLD, rows_BR, cols_BC, chunk_bytes=chunk_bytes)

    def take_lm_head(self) -> Tensor | None:
        """Return `lm_head` [V, Dt] and drop it and the final norm from the stem."""
        head, self.lm_head, self.model.norm = self.lm_head, None, None
        return None if head is None else head.weight

    def take_head(self) -> Head | None:
        """The output head; see `Stem.take_head`."""
        head_VD = self.take_lm_head()
        return None if head_VD is None else Head(weight_VD=head_VD)

    @torch.no_grad()
    def logits(self, states_ND: Tensor, *, normed: bool = True) -> Tensor:
        """The teacher's logits [N, V] from its last hidden states, after the final norm as in stores (`normed`)."""
        assert self.lm_head is not None and self.model.norm is not None, "a stem without lm_head"
        states_ND = states_ND.to(self.dtype)
        logits_NV: Tensor = self.lm_head(states_ND if normed else self.model.norm(states_ND))
        return logits_NV


def stem_shapes(config: VLMConfig, *, lm_head: bool, depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape of every tensor of a stem; nothing is allocated."""
    with torch.device("meta"):
        decoder = _StemDecoder(config, depth, with_norm=lm_head)
    shapes = {f"model.{key}": tuple(tensor.shape) for key, tensor in decoder.state_dict().items()}
    shapes[EMBEDDING_KEY] = (config.vocab_size, config.hidden_size)
    if lm_head:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    return shapes


@dataclass
class _LayerOfInputs(AttentionLayer):
    """A layer whose input is known: the queries of rows are computed when rows are asked for."""

    model: nn.Module
    number: int
    inputs_BLD: Tensor

    @property
    def num_samples(self) -> int:
        """B, number of samples."""
        return len(self.inputs_BLD)

    @torch.no_grad()
    def row_inputs(self, rows_BR: Tensor, samples_B: Tensor | None = None) -> RowInputs:
        """Queries of rows [B, H, R, d] and keys of all positions [B, H, L, d] of these samples."""
        inputs_BLD = self.inputs_BLD if samples_B is None else self.inputs_BLD[samples_B]
        return row_inputs_of_layer(self.model, self.number, inputs_BLD, rows_BR)


class _QueriesAndKeys(nn.Module):
    """The part of LLaMA's attention that `row_inputs_of_layer` uses; `k_proj` has fewer heads if keys are grouped."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = int(config.head_dim)
        self.scaling = self.head_dim**-0.5
        self.q_proj, self.k_proj = (
            nn.Linear(config.hidden_size, heads * self.head_dim, bias=config.attention_bias)
            for heads in (config.num_attention_heads, config.num_key_value_heads)
        )


class _LastLayer(nn.Module):
    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = _QueriesAndKeys(config)


class _StemDecoder(nn.Module):
    """The needed part of the teacher's decoder, with its names."""

    rotary_emb: nn.Module | None

    def __init__(self, config: VLMConfig, depth: int, *, with_norm: bool) -> None:
        super().__init__()
        llama = config.llama
        self.mm_projector = build_projector(
            config.projector_type, config.vision.hidden_size, config.hidden_size, config.pooled_grid
        )
        self.layers = nn.ModuleList(
            [*(LlamaDecoderLayer(llama, number) for number in range(depth - 1)), _LastLayer(llama)]
        )
        self.norm = LlamaRMSNorm(llama.hidden_size, eps=llama.rms_norm_eps) if with_norm else None
        self.rotary_emb = None

    def inputs_of(self, number: int, embeds_BLD: Tensor) -> Tensor:
        """Input of layer `number` [B, L, Dt]."""
        assert self.rotary_emb is not None
        return after_layers(self.layers[:number], self.rotary_emb, embeds_BLD)


def _freeze(stem: nn.Module) -> None:
    for module in stem.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach(), persistent=False)
