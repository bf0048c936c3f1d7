"""The teacher's predictions at supervised positions, for every kind of stored logits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.storage.read.lm_head import LmHead
from alignkd.storage.read.logprobs import Distribution, distribution_of, log_normalisers
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.record import IGNORE_LABEL, Record
from alignkd.storage.schema.manifest import Manifest

TOP_TOKENS = 5


def shown_distribution(record: Record, manifest: Manifest, lm_head: LmHead | None) -> Distribution | None:
    """The teacher's distribution of a record, as training compares it: without columns that are padding.

    None without logits, and for hidden states without an lm_head.
    """
    found = distribution_of(record.logits, lm_head)
    return found[:, : manifest.shapes.num_tokens] if isinstance(found, np.ndarray) else found


def supervised_rows(record: Record, manifest: Manifest, pieces: Pieces, lm_head: LmHead | None) -> list[dict[str, Any]]:
    """For each supervised position the label and the teacher's most probable tokens.

    `top` lists id, piece and probability, together with `label_prob` and `tail_mass`. With `sampled` logits, `draws`
    lists id, piece and number of draws, together with the teacher's `entropy`. Without logits, or with hidden states
    but no lm_head, a row has the label only.
    """
    labels = record.labels[1:][record.labels[1:] != IGNORE_LABEL].tolist()
    rows = [
        {"position": position, "label": label, "label_piece": pieces(label)}
        for position, label in zip(record.supervised_positions.tolist(), labels, strict=True)
    ]
    if (found := shown_distribution(record, manifest, lm_head)) is None:
        return rows
    if isinstance(found, SampledLogits):
        predictions = _drawn(found, pieces)
    else:
        entries = zip(entries_of(found), labels, strict=True)
        predictions = (_most_probable(*entry, label, pieces) for entry, label in entries)
    return [row | more for row, more in zip(rows, predictions, strict=True)]


def why_no_probabilities(record: Record, lm_head: LmHead | None) -> str | None:
    """Why `supervised_rows` gives labels only; None if it also gives predictions."""
    if record.logits is None:
        return "logits are not stored"
    if isinstance(record.logits, HiddenStates) and lm_head is None:
        return "hidden states are stored without lm_head.safetensors: probabilities cannot be computed"
    return None


# ids, their probabilities, and the mass outside them: None where it is unknown
Entries = tuple[NDArray[Any], NDArray[np.float64], float | None]


def entries_of(found: Distribution) -> Iterator[Entries]:
    """What is known of the distribution, position by position; of draws, each id's share of them."""
    if isinstance(found, TruncatedLogits):
        return _kept(found)
    return _shares(found) if isinstance(found, SampledLogits) else _all(found)


def _kept(found: TruncatedLogits) -> Iterator[Entries]:
    tails = [None] * found.num_positions if found.tail_logmass is None else np.exp(found.tail_logmass).tolist()
    for start, stop, tail in zip(found.offsets, found.offsets[1:], tails, strict=False):
        yield found.ids[start:stop], np.exp(found.logprobs[start:stop].astype(np.float64)), tail


def _shares(found: SampledLogits) -> Iterator[Entries]:
    for start, stop in zip(found.offsets, found.offsets[1:], strict=False):
        counts = found.counts[start:stop].astype(np.float64)
        yield found.ids[start:stop], counts / counts.sum(), None


def _all(found: NDArray[Any]) -> Iterator[Entries]:
    ids = np.arange(found.shape[1])
    for row, normaliser in zip(found, log_normalisers(found), strict=True):
        yield ids, np.exp(row.astype(np.float64) - normaliser), 0.0


def _most_probable(
    ids: NDArray[Any], probs: NDArray[np.float64], tail: float | None, label: int, pieces: Pieces
) -> dict[str, Any]:
    best = np.argsort(-probs, kind="stable")[:TOP_TOKENS]
    return {
        "top": [{"id": int(ids[at]), "piece": pieces(int(ids[at])), "prob": float(probs[at])} for at in best],
        "label_prob": float(probs[ids == label].sum()),
        "tail_mass": tail,
    }


def _drawn(found: SampledLogits, pieces: Pieces) -> Iterator[dict[str, Any]]:
    for start, stop, entropy in zip(found.offsets, found.offsets[1:], found.entropy, strict=False):
        ids, counts = found.ids[start:stop], found.counts[start:stop]
        best = np.argsort(-counts.astype(np.int64), kind="stable")[:TOP_TOKENS]
        yield {
            "draws": [{"id": int(ids[at]), "piece": pieces(int(ids[at])), "count": int(counts[at])} for at in best],
            "distinct": len(ids),
            "num_draws": int(counts.sum()),
            "entropy": float(entropy),
        }
