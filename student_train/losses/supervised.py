"""Next-token cross-entropy on the data's own labels, the supervised part of eq. 7."""

from torch import Tensor

from alignkd.student_train.losses.logits.outcomes import Outcomes, outcomes
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype


def supervised_loss(logits_NV: Tensor, labels_N: Tensor) -> LossSum:
    """Cross-entropy in nats at supervised positions; `labels_N` int64 holds each position's NEXT token."""
    return cross_entropy(outcomes(to_accum_dtype(logits_NV), labels_N=labels_N))


def cross_entropy(student: Outcomes) -> LossSum:
    """`supervised_loss` from the log-probabilities of the labels."""
    assert student.label_logprobs_N is not None
    return LossSum.of(-student.label_logprobs_N)
