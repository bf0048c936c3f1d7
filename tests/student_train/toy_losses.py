"""Two loss terms that are added as ARCHITECTURE.md tells under "Where to add": formula, table entry, nothing else.

`vision_l1` compares a stored target, `label_surprise` is on the student's logits.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass, HeadInputs, Term, idle
from alignkd.vlm.families.family import ModelConfig


def l1_loss(adapted_teacher_PD: Tensor, student_PD: Tensor) -> LossSum:
    """Absolute error over all vision tokens."""
    return LossSum.of((adapted_teacher_PD - student_PD.float()).abs().sum(-1), student_PD.numel())


def surprise_loss(logits_nV: Tensor, labels_n: Tensor) -> Tensor:
    """Cross-entropy, which the term `supervised` computes in another way; keeps the logits for the backward pass."""
    return logits_nV.logsumexp(-1) - logits_nV.gather(1, labels_n[:, None])[:, 0]


def vision_l1_term(forward: ForwardPass) -> LossSum:
    targets = forward.batch.vision_all_PD
    if targets is None:
        return idle(forward.adapters.adapt_no_vision(), forward)
    loss = l1_loss(forward.adapters.adapt_vision(targets.decode()), forward.vision_PD)
    return loss.by_sample(forward.samples_P, forward.num_samples)


def vision_l1_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    return reader.num_images * student.vision_tokens * student.hidden_size


def label_surprise_term(inputs: HeadInputs) -> Callable[[Tensor, slice], Tensor]:
    return lambda logits_nV, chunk: surprise_loss(logits_nV, inputs.labels_N[chunk])


ENTRIES = {
    "vision_l1": Term(
        meaning="weight of the absolute error of all vision embeddings.",
        weight=0.0,
        target="vision_all",
        positional=True,
        adapter="proj_adapter",
        compute=vision_l1_term,
        elements=vision_l1_elements,
    ),
    "label_surprise": Term(
        meaning="weight of the surprise.", weight=0.25, presets=("paper",), on_logits=label_surprise_term
    ),
}
