"""Attention targets and focused vision tokens of one batch, from the layers that its forward pass recorded.

Layers are taken one after the other: attention of one layer for one group of samples is on the device at a time, and
the queries and keys of a layer are freed once it is done.

Shapes: R attention rows, C attention columns, P vision tokens of all images, Ht heads, G stored heads, Dt hidden size,
K selected vision tokens.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.codecs.settings import FROM_ALL, NOT_STORED
from alignkd.storage.schema.targets.attention import LayerPairs, attention_targets
from alignkd.storage.schema.targets.named import NamedTarget
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.device_codecs import encode
from alignkd.teacher_dump.targets.host_copies import HostArrays, HostCopies
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.hardware.transfers import to_device
from alignkd.vlm.inputs.batch import pad_positions
from alignkd.vlm.inputs.position_map import AttentionPairs, PositionMap

# bytes of float32 [B, Ht, R, C], the attention of as many samples as are encoded at a time; at least one sample
ENCODED_BYTES = 512 << 20
VISION_TOP_INDEX = "index"


@dataclass(kw_only=True)
class SampleAttention:
    """The attention targets of one sample in parts of the store's codecs; None or absent where none is kept.

    Attributes:
        attention: parts of [blocks, R, Ht, C] of the first layer, see `PositionMap.attention_blocks`.
        vision_top: `VISION_TOP_INDEX`, int32 [K], eq. 2, counted through all images; with parts of [K, Dt] unless
            the codec of `vision_top` is `from_all`.
        layers: name of a further target -> parts of [R, G, C] of each of its layers, in their order.
    """

    attention: HostArrays | None = None
    vision_top: HostArrays | None = None
    layers: dict[str, list[HostArrays]] = field(default_factory=dict)


class AttentionCapture:
    """Computes and encodes the attention that a store keeps.

    Args:
        model: the teacher.
        config: section `store`.
        copies: of the model's device.

    Attributes:
        watched: numbers of the decoder layers that a forward pass has to record; empty for none.

    Raises:
        InputError: see `StoreConfig.further_targets`.
    """

    def __init__(self, model: VisionLanguageModel, config: StoreConfig, copies: HostCopies) -> None:
        self._model, self._config, self._copies = model, config, copies
        self._short = config.codecs().attention
        self._keeps_short, self._keeps_top = (codec not in NOT_STORED for codec in (self._short, config.vision_top))
        further = (target for target in config.further_targets(model.config) if target.source == "store")
        self._further: dict[LayerPairs, NamedTarget] = attention_targets(further)
        self._first = model.config.attention_layer
        numbers = {number for target in self._further.values() for number in target.layers}
        if self._keeps_short or self._keeps_top:
            numbers.add(self._first)
        self.watched = tuple(sorted(numbers))

    def __call__(
        self, maps: Mapping[int, PositionMap], layers: dict[int, AttentionLayer], vision: Mapping[int, Sequence[Tensor]]
    ) -> dict[int, SampleAttention]:
        """The targets of the samples with images, by their rows in the batch.

        Args:
            maps: row -> positions of each sample with an image.
            layers: what the forward pass recorded of `watched`; emptied, so that each layer is freed when it is done.
            vision: row -> the vision embeddings [P, Dt] of each image.
        """
        found = {row: SampleAttention() for row in maps}
        for number in self.watched:
            layer = layers.pop(number)
            kinds = self._kinds_of(number)
            for group in self._groups(maps, kinds) if maps else ():
                for pairs in sorted(kinds):  # one call for each, so that the attention of the last is freed
                    self._capture(number, pairs, {row: maps[row] for row in group}, layer, vision, found)
        return found

    def _kinds_of(self, number: int) -> set[AttentionPairs]:
        """The pairs that are needed of a layer."""
        kinds: set[AttentionPairs] = {pairs for pairs, target in self._further.items() if number in target.layers}
        if number == self._first:
            kinds |= {self._config.attention_pairs} if self._keeps_short else set()
            kinds |= {"tqv"} if self._keeps_top else set()
        return kinds

    def _capture(
        self,
        number: int,
        pairs: AttentionPairs,
        maps: Mapping[int, PositionMap],
        layer: AttentionLayer,
        vision: Mapping[int, Sequence[Tensor]],
        found: dict[int, SampleAttention],
    ) -> None:
        """Add one layer's targets of one kind of pairs of a group of samples to `found`."""
        is_first = number == self._first
        target = None if pairs == "tqt" else self._further.get(pairs)
        for row, probs_HRC in zip(maps, self._attention(maps, layer, pairs), strict=True):
            one = found[row]
            if is_first and self._keeps_short and pairs == self._config.attention_pairs:
                blocks = in_blocks(probs_HRC.transpose(0, 1), len(maps[row].attention_blocks(pairs)))
                one.attention = self._copies.start(encode(self._short, blocks))
            if is_first and self._keeps_top and pairs == "tqv":
                one.vision_top = self._vision_top(probs_HRC, torch.cat(list(vision[row])))
            if target is not None and number in target.layers:
                one.layers.setdefault(target.name, []).append(self._of_layer(probs_HRC, target, number))

    def _of_layer(self, probs_HRC: Tensor, target: NamedTarget, number: int) -> HostArrays:
        """Parts of the stored heads [R, G, C] of a layer."""
        assert target.heads is not None and isinstance(target.codec, str)
        if len(probs_HRC) % target.heads:
            raise InputError(
                f"store.attention: decoder layer {number} has {len(probs_HRC)} heads, of which {target.heads} cannot "
                "be stored; leave the layer out, or store the mean (heads: mean)"
            )
        return self._copies.start(encode(target.codec, head_means(probs_HRC, target.heads).transpose(0, 1)))

    def _groups(self, maps: Mapping[int, PositionMap], kinds: Iterable[AttentionPairs]) -> Iterator[list[int]]:
        """The rows of `maps` in groups whose attention has at most `ENCODED_BYTES`."""
        group: list[int] = []
        largest = 0
        for row, positions in maps.items():
            size = sum(len(positions.attention_rows(pairs)) * len(positions.attention_cols(pairs)) for pairs in kinds)
            largest = max(largest, 4 * self._model.config.num_heads * size)
            if group and (len(group) + 1) * largest > ENCODED_BYTES:
                yield group
                group, largest = [], 4 * self._model.config.num_heads * size
            group.append(row)
        yield group

    def _vision_top(self, tqv_attention_HQP: Tensor, vision_PD: Tensor) -> HostArrays:
        index = vision_top_index(tqv_attention_HQP)
        top = {} if self._config.vision_top == FROM_ALL else encode(self._config.vision_top, vision_PD[index])
        return self._copies.start({VISION_TOP_INDEX: index.to(torch.int32), **top})

    def _attention(
        self, maps: Mapping[int, PositionMap], layer: AttentionLayer, pairs: AttentionPairs
    ) -> Iterator[Tensor]:
        """Attention float32 [Ht, R, C] of each of the samples."""
        rows = [positions.attention_rows(pairs) for positions in maps.values()]
        cols = [positions.attention_cols(pairs) for positions in maps.values()]
        device = self._model.device
        every = len(maps) == layer.num_samples
        samples_I = None if every else to_device(torch.tensor(list(maps), dtype=torch.int64), device)
        probs_IHRC = layer.attention(
            self._padded(rows),
            self._padded(cols),
            samples_I,
            chunk_bytes=chunk_bytes_on(device.type),
        )
        for probs_HRC, row, col in zip(probs_IHRC, rows, cols, strict=True):
            yield probs_HRC[:, : len(row), : len(col)]

    def _padded(self, positions: Sequence[NDArray[np.int32]]) -> Tensor:
        return to_device(pad_positions(positions)[0], self._model.device)


def head_means(probs_HRC: Tensor, heads: int) -> Tensor:
    """Means of groups of neighbouring heads: [Ht, R, C] -> [heads, R, C]."""
    if len(probs_HRC) == heads:
        return probs_HRC
    means_GRC: Tensor = probs_HRC.unflatten(0, (heads, -1)).mean(1)
    return means_GRC


def in_blocks(attention_RHC: Tensor, blocks: int) -> Tensor:
    """[R, Ht, blocks * C] -> [blocks, R, Ht, C]."""
    attention_kRHC: Tensor = attention_RHC.unflatten(-1, (blocks, -1)).permute(2, 0, 1, 3)
    return attention_kRHC
