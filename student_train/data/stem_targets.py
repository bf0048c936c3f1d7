"""Targets that the teacher's stem computes in every step instead of reading them from the store.

They are put into the batch as if they had been stored, so the losses treat both alike. Nothing here has a gradient.

Shape letters: B samples, S of them with images, I images, P vision tokens, L positions, R attention rows, C attention
columns, Q text queries, Ht teacher heads, Dt teacher hidden size, K selected vision tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.targets import AttentionTargets
from alignkd.vlm.attention.focus import vision_top_index
from alignkd.vlm.stem.stem import EmbeddingTable, TeacherStem


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

    def __init__(self, stem: TeacherStem, wanted: frozenset[str], *, chunk_bytes: int) -> None:
        """`chunk_bytes`: largest size of the float32 attention rows computed at a time, which are at least one."""
        super().__init__()
        self.stem, self.wanted, self.chunk_bytes = stem, wanted, chunk_bytes

    @torch.no_grad()
    def fill(self, batch: TrainBatch, features_IND: Tensor) -> TrainBatch:
        """The batch with the stem's targets.

        Args:
            features_IND: features of the frozen tower [I, patches, D_vision], which the student's projector uses too.
        """
        inputs, wanted = batch.stem, self.wanted
        if inputs is None:
            return batch
        vision_IPD = self.stem.vision_embeddings(features_IND)
        filled: dict[str, Any] = {"vision_all_IPD": EncodedTensor.plain(vision_IPD)} if "vision_all" in wanted else {}
        embeds_BLD = self.stem.embed(inputs.text, batch.sequences, vision_IPD)
        attention_BHRC = None
        if "attention" in wanted and batch.attention is not None:
            attention_BHRC = self._attention(batch.attention, embeds_BLD)
            coded = EncodedTensor.plain(attention_BHRC.transpose(1, 2))
            filled["attention"] = replace(batch.attention, coded_BRHC=coded)
        if "vision_top" in wanted:
            places, tqv_BHQP = batch.attention, attention_BHRC
            if inputs.tqv_places is not None:  # eq. 2 needs other pairs than the attention loss
                places, tqv_BHQP = inputs.tqv_places, self._attention(inputs.tqv_places, embeds_BLD)
            assert places is not None and tqv_BHQP is not None
            filled |= _top_tokens(places, inputs.num_images_S, tqv_BHQP, vision_IPD)
        return replace(batch, **filled)

    def _attention(self, places: AttentionTargets, embeds_BLD: Tensor) -> Tensor:
        if places.samples_B is not None:
            embeds_BLD = embeds_BLD[places.samples_B]
        return self.stem.first_layer_attention(embeds_BLD, places.rows_BR, places.cols_BC, chunk_bytes=self.chunk_bytes)


def _top_tokens(
    places: AttentionTargets, num_images_S: Sequence[int], attention_BHQP: Tensor, vision_IPD: Tensor
) -> dict[str, Any]:
    """Eq. 2 for each sample with images: fields of `TrainBatch`."""
    blocks = [block for block, cols in enumerate(places.num_cols_B) if cols]  # one per image, in the images' order
    index_SK, embeddings_SKD, image = [], [], 0
    for count in num_images_S:
        first, rows = blocks[image], places.num_rows_B[blocks[image]]
        # [k, Ht, Q, P] -> [Ht, Q, k * P]: through all images of the sample
        of_sample_HQP = attention_BHQP[first : first + count, :, :rows].permute(1, 2, 0, 3).flatten(2)
        index_K = vision_top_index(of_sample_HQP)
        index_SK.append(index_K)
        embeddings_SKD.append(vision_IPD[image : image + count].flatten(0, 1)[index_K])
        image += count
    return {
        "vision_top_index_IK": torch.stack(index_SK),
        "vision_top_embeddings_IKD": EncodedTensor.plain(torch.stack(embeddings_SKD)),
    }
