"""The stem of a teacher of transformers: its vision embeddings and the attention of its first layers.

Shapes: L positions, P vision tokens of all images, U different token ids of a batch, Dt hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Head, Vision
from alignkd.vlm.families.huggingface.model.config import HuggingFaceConfig
from alignkd.vlm.families.huggingface.model.model import HuggingFaceModel
from alignkd.vlm.families.huggingface.model.parts import tower_of
from alignkd.vlm.families.huggingface.model.recorder import PassStopped, recorded_layers
from alignkd.vlm.families.huggingface.model.tower_outputs import TowerFeatures
from alignkd.vlm.families.huggingface.stem.cut import ReplayedTower, cut_model
from alignkd.vlm.families.stem import EmbeddingTable, Stem, TextRows
from alignkd.vlm.inputs.batch import SequenceBatch


class HuggingFaceStem(Stem):
    """The frozen stem. It is moved with the module that contains it, but never cast.

    Args:
        config: sizes of the teacher.
        depth: see `Stem.depth`.
        weights: the tensors of `cut_model`, named as in it, but for the embedding table.
        table: token embeddings.
        head: the output head, or None.
        needs_mask: whether a padded batch needs an attention mask.
    """

    def __init__(
        self,
        config: HuggingFaceConfig,
        depth: int,
        weights: Mapping[str, Tensor],
        table: EmbeddingTable,
        head: Head | None,
        *,
        needs_mask: bool,
    ) -> None:
        super().__init__()
        self.table, self._head = table, head
        self.dtype = next(iter(weights.values())).dtype
        inner = _model(config, depth, weights)
        self._depth = depth
        model = HuggingFaceModel(inner, config, {}).eval()
        model.needs_mask = needs_mask
        # in a list: its parameters are neither trained, nor saved, nor partitioned
        self._kept = [model]
        tower = tower_of(inner)
        assert isinstance(tower, ReplayedTower)
        self._tower = [tower]
        tower.dtype = self.dtype
        self._text: TextRows | None = None
        inner.get_input_embeddings().register_forward_pre_hook(self._rows_of_batch)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to where `fn` moves tensors, without its casts."""
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, dtype=self.dtype)).device
        self._kept[0].model.to(device)
        if self._head is not None:
            bias_V = self._head.bias_V
            self._head = replace(
                self._head,
                weight_VD=self._head.weight_VD.to(device),
                bias_V=None if bias_V is None else bias_V.to(device),
            )
        return self

    @torch.no_grad()
    def vision(self, features: TowerFeatures) -> Vision:
        """The teacher's encoded images; see `Stem.vision`."""
        encoder, (tower,) = self._kept[0].encoder, self._tower
        encoder.joined = features.joined
        tower.outputs.clear()
        tower.outputs.extend(features.outputs)
        return encoder.encode(features.images, features.samples, self.dtype)

    @property
    def depth(self) -> int:
        """See `Stem.depth`."""
        return self._depth

    @property
    def attention_layer(self) -> int:
        """See `Stem.attention_layer`."""
        return self._kept[0].config.attention_layer

    @torch.no_grad()
    def attention_layers(
        self, batch: SequenceBatch, text: TextRows, vision: Vision | None, layers: Sequence[int]
    ) -> dict[int, AttentionLayer]:
        """Layers of the teacher; see `Stem.attention_layers`."""
        assert layers and max(layers) < self.depth, (layers, self.depth)
        model, last = self._kept[0], max(layers)
        before = [number for number in layers if number < last]
        model.model.get_input_embeddings().weight = nn.Parameter(text.rows_UD, requires_grad=False)
        self._text = text
        model.forget_positions()
        with (
            model.watched_layers(before) as found,
            recorded_layers([model.attention(last)], stops=True) as (layer,),
            suppress(PassStopped),
        ):
            model.model.base_model(**model.decoder_inputs(batch, vision), use_cache=False, return_dict=True)
        self._text = None
        return {**found, last: layer}

    def take_head(self) -> Head | None:
        """The output head; see `Stem.take_head`."""
        head, self._head = self._head, None
        return head

    def _rows_of_batch(self, _: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The embedding module holds the rows of a batch only, so it gets their numbers in place of ids."""
        assert self._text is not None and arguments[0].shape == self._text.index_BL.shape
        return (self._text.index_BL, *arguments[1:])


def _model(config: HuggingFaceConfig, depth: int, weights: Mapping[str, Tensor]) -> Any:
    """`cut_model` with its weights, frozen, on the CPU."""
    model = cut_model(config, depth)
    embedding = model.get_input_embeddings()
    # checked against the number of rows, which are those of a batch
    embedding.padding_idx = None
    dtype = next(iter(weights.values())).dtype
    embedding.weight = nn.Parameter(torch.empty(1, embedding.weight.shape[1], dtype=dtype))
    model.load_state_dict(dict(weights), strict=False, assign=True)
    for tensor in (*model.parameters(), *(model.get_buffer(name) for name in weights.keys() & _buffer_names(model))):
        assert not tensor.is_meta
        tensor._is_hf_initialized = True
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
    # computes what no file holds: frequencies of positions, factors of embeddings
    model.initialize_weights()
    return model.requires_grad_(False)


def _buffer_names(model: Any) -> set[str]:
    return {name for name, _ in model.named_buffers()}
