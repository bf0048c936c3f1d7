"""A loss between the logits of both models at vision tokens, a chunk of tokens at a time.

The teacher's logits are made of its stored states by its own head, so they are exact but for the codec of the states.
Neither side's logits are held at all positions at once.

Shapes: P compared vision tokens, n of a chunk, Dt the teacher's hidden size, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor

from alignkd.student_train.losses.fused_head import WeightedTerm, fused_head_losses
from alignkd.student_train.losses.logits.logit_loss import teacher_logits
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.student_train.objective.logits.logit_terms import first_rows
from alignkd.student_train.objective.term import ForwardPass


def loss_on_vision_logits(
    forward: ForwardPass, places_P: Tensor, teacher_PD: Tensor, loss: Callable[[Tensor, Tensor], LossSum]
) -> LossSum:
    """The sum of a loss over vision tokens; its parts are the samples.

    Args:
        places_P: int64, the student's tokens in the flattened [B * L].
        teacher_PD: last hidden states of the teacher's tokens with which they are compared.
        loss: from the logits of student and teacher [n, V]; its parts are the tokens.
    """
    heads = forward.heads
    assert heads is not None and heads.teacher is not None  # `LossConfig.needs_teacher_head`
    num_tokens, teacher_head = heads.num_tokens, first_rows(heads.teacher, heads.num_tokens)

    def of_chunk(student_nV: Tensor, chunk: slice) -> Tensor:
        return loss(student_nV[:, :num_tokens], teacher_logits(teacher_PD[chunk], teacher_head)).parts

    (found,) = fused_head_losses(
        forward.hidden_BLD.flatten(0, 1)[places_P],
        heads.student,
        [WeightedTerm(term=of_chunk, weight=1.0)],
        chunk_bytes=heads.chunk_bytes,
    )
    return found.by_sample(places_P // forward.hidden_BLD.shape[1], forward.num_samples)


def no_vision_tokens(forward: ForwardPass) -> LossSum:
    """A loss of no elements."""
    zeros_B = to_accum_dtype(forward.hidden_BLD.new_zeros(forward.num_samples))
    return LossSum(zeros_B.sum(), 0, zeros_B)
