"""What a model predicts at the supervised positions of a record: most probable tokens, and the label among them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.pipeline.shards.view.teacher_view import entries_of, shown_distribution
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.record.record import IGNORE_LABEL, Record
from alignkd.storage.schema.manifest import Manifest

TOP_TOKENS = 10


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One token of a distribution."""

    id: int
    piece: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The distribution of the token that follows a position.

    Attributes:
        position: the supervised position.
        label: the token that follows in the data.
        top: the most probable tokens that are known, at most `TOP_TOKENS`; of draws, their shares of all draws.
        tail_mass: probability of all tokens that are not stored; 0 where every token is, None where it is unknown.
        label_probability: of the label; None if it is not among the stored tokens.
        label_rank: 1 for the most probable token; None if it is not among the stored tokens.
    """

    position: int
    label: int
    top: tuple[Entry, ...]
    tail_mass: float | None
    label_probability: float | None
    label_rank: int | None


def labels_of(record: Record) -> NDArray[np.int32]:
    """The label of each supervised position, [N]."""
    labels: NDArray[np.int32] = record.labels[1:][record.labels[1:] != IGNORE_LABEL]
    return labels


def predictions_of(record: Record, manifest: Manifest, pieces: Pieces, lm_head: LmHead | None) -> list[Prediction]:
    """The teacher's prediction at each supervised position; empty if the store has none."""
    if (found := shown_distribution(record, manifest, lm_head)) is None:
        return []
    places = zip(record.supervised_positions.tolist(), labels_of(record).tolist(), entries_of(found), strict=True)
    return [prediction(position, label, *entries, pieces) for position, label, entries in places]


def prediction(
    position: int, label: int, ids: NDArray[Any], probs: NDArray[np.float64], tail: float | None, pieces: Pieces
) -> Prediction:
    """One prediction.

    Args:
        ids: the known tokens, [K].
        probs: their probabilities, float64 [K].
        tail: see `Prediction.tail_mass`.
    """
    best = np.argsort(-probs, kind="stable")[:TOP_TOKENS]
    own = np.flatnonzero(ids == label)
    probability = float(probs[own[0]]) if len(own) else None
    return Prediction(
        position=position,
        label=label,
        top=tuple(
            Entry(id=int(ids[at]), piece=pieces(int(ids[at])), probability=float(probs[at])) for at in best.tolist()
        ),
        tail_mass=tail,
        label_probability=probability,
        label_rank=None if probability is None else 1 + int((probs > probability).sum()),
    )
