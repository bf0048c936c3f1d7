"""Targets that the teacher's stem computes in every step instead of reading them from the store.

They are put into the batch as if they had been stored, so the losses treat both alike. Nothing here has a gradient.

Shape letters: B samples, P vision tokens of all images, L positions, R attention rows, C attention columns, Q text
queries, Ht teacher heads, Dt teacher hidden size, K selected vision tokens of all samples.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets, StemInputs
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.attention.layer import AttentionLayer
from alignkd.vlm.families.family import Vision
from alignkd.vlm.families.stem import EmbeddingTable, Stem


@dataclass(frozen=True, kw_only=True)
class StemLookup:
    """The part of the stem that is needed to prepare a batch on the host.

    Attributes:
        wanted: the targets that the stem computes: any of `attention`, `vision_top` and `vision_all`.
        table: the teacher's token embeddings.
    """

    wanted: frozenset[str]
    table: EmbeddingTable


class StemTargets(nn.Module):
    """The stem as a frozen part of the trained module: moved to its device, but not part of optimiser or checkpoint.

    Its embedding table stays on the host and is used to prepare batches, as a `StemLookup`.
    """

    def __init__(self, stem: Stem, wanted: frozenset[str], *, chunk_bytes: Callable[[str], int]) -> None:
        """`chunk_bytes`: largest size of the float32 attention rows that a kind of device computes at a time."""
        super().__init__()
        self.stem, self.wanted, self.chunk_bytes = stem, wanted, chunk_bytes

    @torch.no_grad()
    def fill(self, batch: TrainBatch, features: Any) -> TrainBatch:
        """The batch with the stem's targets.

        Args:
            features: `Vision.features`, the output of the frozen tower, which the student's projector uses too.
        """
        inputs, wanted = batch.stem, self.wanted
        if inputs is None:
            return batch
        vision = self.stem.vision(features)
        vision_PD = vision.embeddings_PD
        filled: dict[str, Any] = {"vision_all_PD": EncodedTensor.plain(vision_PD)} if "vision_all" in wanted else {}
        if not wanted & {"attention", "vision_top"}:
            return replace(batch, **filled)
        targets = batch.attention if "attention" in wanted else None
        layers = self._layers(batch, inputs, vision, targets)
        attention_BHRC = None
        if targets is not None:
            each = [layers[number] for number in targets.layers or (self.stem.attention_layer,)]
            attention_BHRC = torch.cat([self._attention(targets, layer) for layer in each], dim=1)
            coded = EncodedTensor.plain(attention_BHRC.transpose(1, 2))
            filled["attention"] = replace(targets, coded_BRHC=coded)
        if "vision_top" in wanted:
            places, tqv_BHQP = targets, attention_BHRC
            if inputs.tqv_places is not None:  # eq. 2 needs other pairs or another layer than the attention loss
                places = inputs.tqv_places
                tqv_BHQP = self._attention(places, layers[self.stem.attention_layer])
            assert places is not None and tqv_BHQP is not None
            filled |= _top_tokens(places, inputs.vision_tokens_S, tqv_BHQP, vision_PD)
        return replace(batch, **filled)

    def _layers(
        self, batch: TrainBatch, inputs: StemInputs, vision: Vision, targets: AttentionTargets | None
    ) -> Mapping[int, AttentionLayer]:
        """The teacher's layers that the targets need."""
        needed = set() if targets is None else {*(targets.layers or (self.stem.attention_layer,))}
        if "vision_top" in self.wanted:
            needed.add(self.stem.attention_layer)
        if not needed:  # no sample has a row
            return {}
        return self.stem.attention_layers(batch.sequences, inputs.text, vision, sorted(needed))

    def _attention(self, places: AttentionTargets, layer: AttentionLayer) -> Tensor:
        chunk_bytes = self.chunk_bytes(places.rows_BR.device.type)
        return layer.attention(places.rows_BR, places.cols_BC, places.samples_B, chunk_bytes=chunk_bytes)


def _top_tokens(
    places: AttentionTargets, vision_tokens_S: Sequence[int], attention_BHQC: Tensor, vision_PD: Tensor
) -> dict[str, Any]:
    """Eq. 2 for each sample with images: fields of `TrainBatch`."""
    blocks = iter([block for block, cols in enumerate(places.num_cols_B) if cols])  # in the images' order
    index, start = [], 0
    for tokens in vision_tokens_S:
        parts, width = [], 0
        while width < tokens:  # the blocks of one sample: one for each image, or one for all of them
            block = next(blocks)
            rows, cols = places.num_rows_B[block], places.num_cols_B[block]
            parts.append(attention_BHQC[block, :, :rows, :cols])
            width += cols
        index.append(start + vision_top_index(torch.cat(parts, dim=-1)))
        start += tokens
    index_K = torch.cat(index)
    return {
        "vision_top_index_K": index_K,
        "vision_top_embeddings_KD": EncodedTensor.plain(vision_PD.index_select(0, index_K)),
    }
