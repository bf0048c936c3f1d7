"""One micro-batch: the student's inputs and the teacher's targets.

Targets keep their stored form until they are on the device (`alignkd.student_train.data.decode`).

Shape letters: B samples, P vision tokens of all images of the batch, K selected vision tokens of all its samples, Dt
teacher hidden size, N supervised positions of the whole batch.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from alignkd.student_train.data.decode import EncodedTensor
from alignkd.student_train.data.handoff.block import in_one_copy
from alignkd.student_train.data.targets import (
    AffinityTargets,
    AttentionTargets,
    CounterfactualTargets,
    LogitTargets,
    PreferenceTargets,
    StemInputs,
)
from alignkd.vlm.inputs.batch import SequenceBatch
from alignkd.vlm.inputs.packed_images import PackedImages


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """B samples and their targets; a target is None if no loss needs it or no sample of the batch has it.

    Attributes:
        sequences: the student's inputs.
        supervised_N: int64, supervised positions in the flattened [B * L]. They are computed on the host, so that no
            forward pass waits for the accelerator to count a mask.
        labels_N: int64, the token that follows each of them.
        positions_of_sample: supervised positions of each sample, plain integers.
        generated_N: bool, which of these tokens are of answers that a model wrote; None if no sample has any, or if no
            loss asks for them.
        high_N: bool, which of these positions are those of their sample at which the image helps the teacher most; None
            if no loss asks for them.
        attention: targets of eq. 1.
        vision_all_PD: teacher vision embeddings, image by image in batch order.
        vision_top_index_K: int64, the tokens of eq. 2 of each sample with images, counted through all images of the
            batch.
        vision_top_embeddings_KD: teacher vision embeddings at those tokens.
        logits: one of four kinds; positions as in `supervised_N`.
        vision_states_PD: the teacher's last hidden states at the vision positions, in the order of `vision_all_PD`.
        vision_relations_R: cosines of all pairs of vision tokens of each image, image after image.
        state_norms_N: norms of the teacher's last hidden states at the supervised positions.
        teacher_tokens_of_image: the teacher's vision tokens of each image.
        affinity: the teacher's cosines between text queries and vision tokens.
        counterfactual: the teacher's two passes over the samples with images.
        rejected_N: bool, which labels are of a rejected answer; None if none is.
        num_rejected: number of these labels.
        preference: pairs of answers to one question.
        stem: inputs from which the teacher's stem computes the targets that are not stored; None if it computes none.
    """

    sequences: SequenceBatch
    supervised_N: Tensor
    labels_N: Tensor
    positions_of_sample: tuple[int, ...]
    generated_N: Tensor | None = None
    high_N: Tensor | None = None
    attention: AttentionTargets | None = None
    vision_all_PD: EncodedTensor | None = None
    vision_top_index_K: Tensor | None = None
    vision_top_embeddings_KD: EncodedTensor | None = None
    logits: LogitTargets | None = None
    vision_states_PD: EncodedTensor | None = None
    vision_relations_R: EncodedTensor | None = None
    state_norms_N: EncodedTensor | None = None
    teacher_tokens_of_image: tuple[int, ...] = ()
    affinity: AffinityTargets | None = None
    counterfactual: CounterfactualTargets | None = None
    rejected_N: Tensor | None = None
    num_rejected: int = 0
    preference: PreferenceTargets | None = None
    stem: StemInputs | None = None

    def to(self, device: torch.device | str) -> Self:
        """The batch with every tensor but `sequences.image_samples_I` on `device`; itself if it is there.

        The host does not wait for the copies. Its memory may be used again at once.
        """
        device, here = torch.device(device), self.supervised_N.device
        if device.type == here.type and device.index in (None, here.index):
            return self
        sequences = self.sequences
        # images apart: they are most of the bytes, and other tensors live until the end of the backward pass
        there = in_one_copy(replace(self, sequences=replace(sequences, images=())), device)
        images = in_one_copy(PackedImages.of(sequences.images), device)
        moved = replace(there.sequences, images=images, image_samples_I=sequences.image_samples_I)
        return replace(there, sequences=moved)
