"""The term `relation`: Gram matrices of the vision tokens of each image.

The teacher's side is what the batch has: stored cosines, the teacher's states at the vision positions, or its vision
embeddings, stored or computed by the stem.

Shapes: P vision tokens of all images, I images, D width of a state, R pairs of all images.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.storage.schema.targets.vision import LAST_HIDDEN, PROJECTOR
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.student_train.losses.vision.relations import relation_loss, triangle_loss
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.relations import num_pairs


def relation_term(forward: ForwardPass) -> LossSum:
    """1 - cosine of both Gram matrices of each image; an element is an image."""
    counts = forward.batch.sequences.tokens_of_image
    if not counts:
        zeros_B = to_accum_dtype(forward.hidden_BLD.new_zeros(forward.num_samples))
        return LossSum(zeros_B.sum(), 0, zeros_B)
    student = _student_states(forward).split(list(counts))
    stored = forward.batch.vision_relations_R
    if stored is not None:
        teacher = stored.decode().split([num_pairs(tokens) for tokens in counts])
    else:
        teacher = _teacher_states(forward).split(list(counts))
    assert forward.vision is not None
    unit = forward.vision.unit_rows
    values: list[Tensor] = [student[0]] * len(counts)
    for images in _of_equal_size(counts):
        student_IPD, teacher_IXX = (torch.stack([parts[image] for image in images]) for parts in (student, teacher))
        if stored is not None:
            loss = triangle_loss(student_IPD, teacher_IXX)
        else:
            loss = relation_loss(student_IPD, teacher_IXX, unit=unit)
        for image, value in zip(images, loss.parts.unbind(), strict=True):
            values[image] = value
    return LossSum.of(torch.stack(values)).by_sample(forward.samples_I, forward.num_samples)


def relation_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Images of each sample."""
    return reader.num_images.astype(np.int64)


def _student_states(forward: ForwardPass) -> Tensor:
    """The student's states [P, Ds] of the same kind as the teacher's."""
    settings = forward.vision
    assert settings is not None
    if settings.relations_of == PROJECTOR:
        return forward.vision_PD
    states_BLD = forward.hidden_BLD
    if settings.relations_of != LAST_HIDDEN:
        assert settings.layer is not None
        states_BLD = forward.after_layers[settings.layer]
    return states_BLD.flatten(0, 1)[forward.batch.sequences.vision_places_P]


def _teacher_states(forward: ForwardPass) -> Tensor:
    """The teacher's states [P, Dt]."""
    assert forward.vision is not None
    of_projector = forward.vision.relations_of == PROJECTOR
    states = forward.batch.vision_all_PD if of_projector else forward.batch.vision_states_PD
    assert states is not None
    return states.decode()


def _of_equal_size(counts: Sequence[int]) -> list[list[int]]:
    """Numbers of the images of each size."""
    groups: dict[int, list[int]] = {}
    for image, tokens in enumerate(counts):
        groups.setdefault(tokens, []).append(image)
    return list(groups.values())
