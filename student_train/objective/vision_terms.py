"""Eq. 3 and 4 on stored targets: the student's vision embeddings against the adapted teacher's.

Shape letters as in `alignkd.student_train.data.batch`.
"""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.vision import vision_all_loss, vision_top_loss
from alignkd.student_train.objective.term import ForwardPass, idle
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig


def vision_all_term(forward: ForwardPass) -> LossSum:
    """Eq. 4: all vision tokens of every image."""
    targets, adapters = forward.batch.vision_all_IPD, forward.adapters
    if targets is None:
        return idle(adapters.adapt_no_vision())
    return vision_all_loss(adapters.adapt_vision(targets.decode()), forward.vision_IPD)


def vision_all_elements(reader: StoreReader, student: VLMConfig) -> NDArray[np.int64]:
    """Values of all vision embeddings of each sample."""
    return reader.num_images * student.vision_tokens * student.hidden_size


def vision_top_term(forward: ForwardPass) -> LossSum:
    """Eq. 3: the vision tokens that the teacher attends to most."""
    batch, adapters, vision_IPD = forward.batch, forward.adapters, forward.vision_IPD
    index_IK = batch.vision_top_index_IK
    if batch.vision_top_embeddings_IKD is None or index_IK is None:
        return idle(adapters.adapt_no_vision())
    adapted_IKD = adapters.adapt_vision(batch.vision_top_embeddings_IKD.decode())
    if batch.first_image_S is None:
        return vision_top_loss(adapted_IKD, vision_IPD, index_IK)
    index_IK = index_IK + vision_IPD.shape[1] * batch.first_image_S[:, None]  # through all images of the batch
    return vision_top_loss(adapted_IKD.flatten(0, 1)[None], vision_IPD.flatten(0, 1)[None], index_IK.flatten()[None])


def vision_top_elements(reader: StoreReader, student: VLMConfig) -> NDArray[np.int64]:
    """Values of the embeddings of the selected vision tokens of each sample."""
    return reader.has_image.astype(np.int64) * reader.manifest.shapes.vision_top_tokens * student.hidden_size
