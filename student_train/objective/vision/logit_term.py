"""The term `visual_logit`: the divergence of both models' next-token distributions at the vision positions."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.losses.logits.logit_loss import logit_loss
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass
from alignkd.student_train.objective.vision.fused_logits import loss_on_vision_logits, no_vision_tokens
from alignkd.vlm.families.family import ModelConfig


def visual_logit_term(forward: ForwardPass) -> LossSum:
    """The divergence of `losses.visual_logit_divergence`; an element is a vision token."""
    states, settings = forward.batch.vision_states_PD, forward.vision
    if states is None:
        return no_vision_tokens(forward)
    assert settings is not None

    def loss(student_nV: Tensor, teacher_nV: Tensor) -> LossSum:
        divergence, temperature = settings.divergence, settings.temperature
        return logit_loss(student_nV, teacher_nV, divergence=divergence, temperature=temperature)

    return loss_on_vision_logits(forward, forward.batch.sequences.vision_places_P, states.decode(), loss)


def visual_logit_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Vision tokens of each sample."""
    return reader.num_vision.astype(np.int64)
