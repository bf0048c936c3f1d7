"""The term `visual_logit`: the divergence of both models' next-token distributions at the vision positions.

The teacher's logits are made of its stored states by its own head, a few positions at a time, so they are exact but for
the codec of the states. Neither side's logits are held at all positions at once.

Shapes: P vision tokens of all images, V vocabulary.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import logit_loss, teacher_logits
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.logits.logit_terms import first_rows
from alignkd.student_train.objective.term import ForwardPass
from alignkd.vlm.families.family import ModelConfig


def visual_logit_term(forward: ForwardPass) -> LossSum:
    """The divergence of `losses.visual_logit_divergence`; an element is a vision token."""
    states, heads, settings = forward.batch.vision_states_PD, forward.heads, forward.vision
    if states is None:
        zeros_B = to_accum_dtype(forward.hidden_BLD.new_zeros(forward.num_samples))
        return LossSum(zeros_B.sum(), 0, zeros_B)
    assert heads is not None and heads.teacher is not None and settings is not None
    teacher_PD, teacher_head = states.decode(), first_rows(heads.teacher, heads.num_tokens)

    def term(student_nV: Tensor, chunk: slice) -> Tensor:
        teacher_nV = teacher_logits(teacher_PD[chunk], teacher_head)
        return logit_loss(
            student_nV[:, : heads.num_tokens],
            teacher_nV,
            divergence=settings.divergence,
            temperature=settings.temperature,
        ).parts

    (loss,) = fused_head_losses(
        forward.hidden_BLD.flatten(0, 1)[forward.batch.sequences.vision_places_P],
        heads.student,
        [WeightedTerm(term=term, weight=1.0)],
        chunk_bytes=heads.chunk_bytes,
    )
    return loss.by_sample(forward.samples_P, forward.num_samples)


def visual_logit_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Vision tokens of each sample."""
    return reader.num_vision.astype(np.int64)
