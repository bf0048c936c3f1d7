"""Next-token cross-entropy on the data's own labels, the supervised part of eq. 7."""

from torch import Tensor
from torch.nn import functional

from student_train.losses.loss_sum import LossSum, accumulable


def supervised_loss(logits_NV: Tensor, labels_N: Tensor) -> LossSum:
    """Cross-entropy in nats at supervised positions; `labels_N` int64 holds each position's NEXT token."""
    total = functional.cross_entropy(accumulable(logits_NV), labels_N, reduction="sum")
    return LossSum(total, labels_N.numel())
