"""Eq. 3 and 4 on stored targets: the student's vision embeddings against the adapted teacher's.

Shape letters as in `alignkd.student_train.data.batch`.
"""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.vision.embeddings import vision_all_loss, vision_top_loss
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass, idle
from alignkd.vlm.families.family import ModelConfig


def vision_all_term(forward: ForwardPass) -> LossSum:
    """Eq. 4: all vision tokens of every image."""
    targets, adapters = forward.batch.vision_all_PD, forward.adapters
    if targets is None:
        return idle(adapters.adapt_no_vision(), forward)
    loss = vision_all_loss(adapters.adapt_vision(targets.decode()), forward.vision_PD)
    return loss.by_sample(forward.samples_P, forward.num_samples)


def vision_all_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Values of all vision embeddings of each sample."""
    return reader.num_vision * student.hidden_size


def vision_top_term(forward: ForwardPass) -> LossSum:
    """Eq. 3: the vision tokens that the teacher attends to most."""
    batch, adapters = forward.batch, forward.adapters
    if batch.vision_top_embeddings_KD is None or batch.vision_top_index_K is None:
        return idle(adapters.adapt_no_vision(), forward)
    adapted_KD = adapters.adapt_vision(batch.vision_top_embeddings_KD.decode())
    index_K = batch.vision_top_index_K
    loss = vision_top_loss(adapted_KD, forward.vision_PD, index_K)
    return loss.by_sample(forward.samples_P.index_select(0, index_K), forward.num_samples)


def vision_top_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Values of the embeddings of the selected vision tokens of each sample."""
    return np.minimum(reader.manifest.shapes.vision_top_tokens, reader.num_vision) * student.hidden_size
