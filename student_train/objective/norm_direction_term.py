"""The term `nd`: norm and direction of the student's last hidden states at the supervised positions.

Shapes: N supervised positions, Ds and Dt hidden sizes.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.targets import HiddenTargets
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.norm_direction import norm_direction_loss
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass
from alignkd.vlm.families.family import ModelConfig


def nd_term(forward: ForwardPass) -> LossSum:
    """`norm_direction_loss`; an element is a supervised position, and one whose token has no centre adds 0.

    Positions of rejected answers are no elements: the loss would pull the student towards their tokens.
    """
    batch, centres = forward.batch, forward.centres
    assert centres is not None
    student_ND = forward.hidden_BLD.flatten(0, 1)[batch.supervised_N]
    centres_ND, has_centre_N = centres.of_labels(batch.labels_N)
    if batch.rejected_N is not None:
        has_centre_N = has_centre_N & ~batch.rejected_N
    adapted_ND = forward.adapters.adapt_states(student_ND)
    loss = norm_direction_loss(adapted_ND, centres_ND, _teacher_norms(batch), has_centre_N)
    return replace(loss, count=loss.count - batch.num_rejected).by_sample(forward.samples_N, forward.num_samples)


def nd_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Supervised positions of each sample without a rejected answer."""
    return np.where(Pairs.of(reader).rejected, 0, reader.num_supervised).astype(np.int64)


def _teacher_norms(batch: TrainBatch) -> Tensor:
    """Norms [N] of the teacher's states: stored, or of its stored states."""
    if batch.state_norms_N is not None:
        return batch.state_norms_N.decode()
    assert isinstance(batch.logits, HiddenTargets)
    norms_N: Tensor = batch.logits.states.decode().float().norm(dim=-1)
    return norms_N
