"""The terms `vsd` and `vlad` of EM-KD (`losses/vision/vsd.py`, `vlad.py`).

Vision tokens are compared in their places, or in the pairs of `ForwardPass.vision_pairs`.

Shapes: P vision tokens of all images, M compared pairs, S samples with images, Q text queries, R compared vision tokens
of a sample, D the student's hidden size.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.student_train.data.targets import AffinityTargets
from alignkd.student_train.losses.attention.squared_error import length_mask
from alignkd.student_train.losses.loss_sum import LossSum
from alignkd.student_train.losses.vision.vlad import vlad_loss
from alignkd.student_train.losses.vision.vsd import vsd_loss
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass
from alignkd.student_train.objective.vision.fused_logits import loss_on_vision_logits, no_vision_tokens
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.relations import cosines


def vsd_term(forward: ForwardPass) -> LossSum:
    """`vsd_loss`; the logits of both sides are computed a chunk of vision tokens at a time."""
    targets, pairs = forward.batch.vision_states_PD, forward.vision_pairs
    if targets is None:
        return no_vision_tokens(forward)
    places_P, teacher_PD = forward.batch.sequences.vision_places_P, targets.decode()
    if pairs is not None:
        places_P, teacher_PD = places_P[pairs.student_M], teacher_PD[pairs.teacher_M]
    return loss_on_vision_logits(forward, places_P, teacher_PD, vsd_loss)


def vlad_term(forward: ForwardPass) -> LossSum:
    """`vlad_loss` of all samples at once."""
    targets = forward.batch.affinity
    if targets is None:
        return no_vision_tokens(forward)
    vision_SR, teacher_SQR, lengths_S, num_S = _compared(forward, targets)
    states_ND = forward.hidden_BLD.flatten(0, 1)
    student_SQR = cosines(states_ND[targets.queries_SQ], states_ND[vision_SR])
    mask_SQR = (
        length_mask(targets.lengths_3S[0], student_SQR.shape[1], student_SQR)[:, :, None]
        & length_mask(lengths_S, student_SQR.shape[2], student_SQR)[:, None, :]
    )
    loss = vlad_loss(student_SQR, teacher_SQR, mask_SQR)
    count = sum(queries * vision for queries, vision in zip(targets.num_queries_S, num_S, strict=True))
    return LossSum(loss.total, count, loss.parts).by_sample(targets.samples_S, forward.num_samples)


def vsd_elements(reader: StoreReader, student: ModelConfig, _: AttentionMatch) -> NDArray[np.int64]:
    """Compared vision tokens of each sample: the fewer of the two sides' of each image."""
    stored, own = reader.manifest.shapes.vision_tokens, student.vision_tokens
    if stored is None or own is None:  # equally many: `run/checks/fit.py`
        return reader.num_vision
    return reader.num_images * min(stored, own)


def vlad_elements(reader: StoreReader, student: ModelConfig, attention: AttentionMatch) -> NDArray[np.int64]:
    """Pairs of a text query and a compared vision token of each sample."""
    return reader.num_queries * vsd_elements(reader, student, attention)


def _compared(forward: ForwardPass, targets: AffinityTargets) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
    """Compared vision tokens in [B * L], the teacher's cosines with their partners, and their number in each sample."""
    teacher_SQT, pairs = targets.coded_SQT.decode(), forward.vision_pairs
    if pairs is None:
        return targets.vision_SP, teacher_SQT, targets.lengths_3S[2], targets.num_vision_S
    columns_SQR = pairs.teacher_SR[:, None].expand(-1, teacher_SQT.shape[1], -1)
    return (
        targets.vision_SP.gather(1, pairs.student_SR),
        teacher_SQT.gather(2, columns_SQR),
        pairs.lengths_S,
        pairs.num_S,
    )
