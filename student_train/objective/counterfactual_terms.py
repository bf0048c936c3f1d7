"""The terms `effect` and `keep`: a second forward pass of the student with vision tokens replaced.

Each term needs a pass of its own. Where both have a weight, a training step computes ONE of them, drawn with equal
chance from seed and step, and counts it twice: the expected gradient is that of both. Every rank and a resumed run draw
the same. Validation computes both.

Shapes: M supervised positions of the batch's samples that have images and no rejected answer, D the student's hidden
size, B samples, V vocabulary.
"""

import hashlib
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.losses.counterfactual import effect_loss, keep_loss
from alignkd.student_train.losses.fused_head import HeadTerm, WeightedTerm, fused_head_losses
from alignkd.student_train.losses.loss_sum import LossSum, to_accum_dtype
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.term import ForwardPass, SecondPasses
from alignkd.vlm.families.family import ModelConfig, Vision, VisionLanguageModel
from alignkd.vlm.families.replaced_vision import neutral_vision, replaced_vision

EFFECT, KEEP = "effect", "keep"


def drawn_terms(weighted: Collection[str], *, seed: int, step: int) -> tuple[str, ...]:
    """The terms that a training step computes, of `effect` and `keep` with a weight."""
    names = [name for name in (EFFECT, KEEP) if name in weighted]
    if len(names) < 2:
        return tuple(names)
    return (names[hashlib.sha256(f"counterfactual {seed} {step}".encode()).digest()[0] % 2],)


def second_states(
    model: VisionLanguageModel, batch: TrainBatch, vision: Vision, terms: Collection[str]
) -> dict[str, Tensor]:
    """Hidden states [M, D] of the further passes by term; none for a batch without images.

    They run after the first pass: backward then reaches a weight's first pass last, with and without further ones, and
    all ranks finish the gradients in the same order.
    """
    targets = batch.counterfactual
    if targets is None or not terms:
        return {}
    neutral = neutral_vision(model, batch.sequences.images, batch.sequences.image_samples_I.tolist())
    found = {}
    for term in terms:
        replaced_P = targets.evidence_P
        if term == KEEP:
            assert replaced_P is not None  # `problems_with_counterfactual`
            replaced_P = ~replaced_P
        hidden_BLD = model.hidden_states(batch.sequences, replaced_vision(vision, neutral, replaced_P))
        found[term] = hidden_BLD.flatten(0, 1)[batch.supervised_N[targets.places_M]]
    return found


def effect_term(forward: ForwardPass) -> LossSum:
    """`effect_loss`; the student's logits of both passes at a position are computed in the same chunk."""
    removed_MD, targets = _states(forward, EFFECT), forward.batch.counterfactual
    if removed_MD is None or targets is None:
        return _not_computed(forward)
    full_MD = forward.hidden_BLD.flatten(0, 1)[forward.batch.supervised_N[targets.places_M]]
    num_tokens = _second(forward).num_tokens

    def of_pairs(logits_nV: Tensor, chunk: slice) -> Tensor:
        positions = slice(chunk.start // 2, (chunk.start + len(logits_nV)) // 2)
        pairs = logits_nV[:, :num_tokens].unflatten(0, (-1, 2))
        parts = effect_loss(
            pairs[:, 0],
            pairs[:, 1],
            targets.full.distribution(positions),
            targets.removed.distribution(positions),
        ).parts
        return torch.stack([parts, torch.zeros_like(parts)], dim=1).flatten()

    return _fused(forward, torch.stack([full_MD, removed_MD], dim=1).flatten(0, 1), of_pairs, rows=2)


def keep_term(forward: ForwardPass) -> LossSum:
    """`keep_loss`."""
    kept_MD, targets = _states(forward, KEEP), forward.batch.counterfactual
    if kept_MD is None or targets is None:
        return _not_computed(forward)
    num_tokens = _second(forward).num_tokens

    def of_rows(logits_nV: Tensor, chunk: slice) -> Tensor:
        return keep_loss(logits_nV[:, :num_tokens], targets.full.distribution(chunk)).parts

    return _fused(forward, kept_MD, of_rows, rows=1)


def counterfactual_elements(reader: StoreReader, student: ModelConfig, attention: AttentionMatch) -> NDArray[np.int64]:
    """Supervised positions of each sample that has images, but for rejected answers of preference pairs."""
    return np.where(reader.has_image & ~Pairs.of(reader).rejected, reader.num_supervised, 0)


def _fused(forward: ForwardPass, states_RD: Tensor, term: HeadTerm, *, rows: int) -> LossSum:
    """The term over states of which `rows` belong to each position; its parts are the samples."""
    second = _second(forward)
    (found,) = fused_head_losses(
        states_RD,
        second.head,
        [WeightedTerm(term=term, weight=1.0)],
        chunk_bytes=second.chunk_bytes,
        rows_of_position=rows,
    )
    parts_M = found.parts.unflatten(0, (-1, rows)).sum(1)
    loss = LossSum(found.total * second.factor, len(parts_M), parts_M * second.factor)
    return loss.by_sample(_samples_M(forward), forward.num_samples)


def _second(forward: ForwardPass) -> SecondPasses:
    assert forward.second is not None
    return forward.second


def _states(forward: ForwardPass, term: str) -> Tensor | None:
    return _second(forward).states_MD.get(term)


def _samples_M(forward: ForwardPass) -> Tensor:
    assert forward.batch.counterfactual is not None
    return forward.samples_N[forward.batch.counterfactual.places_M]


def _not_computed(forward: ForwardPass) -> LossSum:
    """0 for the elements of the batch: it has none, or the step computes the other term."""
    targets = forward.batch.counterfactual
    count = 0 if targets is None else len(targets.places_M)
    zeros = to_accum_dtype(forward.hidden_BLD.new_zeros(forward.num_samples))
    return LossSum(zeros.sum(), count, zeros)
