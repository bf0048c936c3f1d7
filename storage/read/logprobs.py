"""The teacher's log-probabilities from any kind of stored logits.

N supervised positions, V vocabulary, M questions (a position and a token id each).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.files.source import StoreFiles
from alignkd.storage.read.lm_head import LM_HEAD_FILE, LmHead
from alignkd.storage.record.distributions import HiddenStates, SampledLogits, TruncatedLogits
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.record import Logits
from alignkd.storage.schema.attachments import verified_attachment
from alignkd.storage.schema.manifest import Manifest

Distribution = NDArray[Any] | TruncatedLogits | SampledLogits

ROWS = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Answers to M questions.

    Attributes:
        logprobs: natural log, float64 [M]. Where `kept` is False an estimate: the tail's mass in equal parts for the
            other tokens (`topk`, `nucleus`; -inf where the tail is unknown), or a uniform prior that counts as one
            draw (`sampled`).
        kept: whether the token is among the stored entries, bool [M].
    """

    logprobs: NDArray[np.float64]
    kept: NDArray[np.bool_]


def open_lm_head(files: StoreFiles, manifest: Manifest) -> LmHead | None:
    """The matrix for a store of hidden states; None if the store has no hidden states or no matrix.

    Raises:
        CorruptStoreError: the matrix is damaged.
    """
    if manifest.codecs.logits.kind != "hidden" or LM_HEAD_FILE not in manifest.attachments:
        return None
    return LmHead(verified_attachment(files, manifest, LM_HEAD_FILE), manifest)


def distribution_of(logits: Logits | None, lm_head: LmHead | None) -> Distribution | None:
    """The input of `answers` and `entropies`: logits [N, V] for hidden states, other kinds unchanged.

    None if nothing is stored, or hidden states without an lm_head.
    """
    if not isinstance(logits, HiddenStates):
        return logits
    return None if lm_head is None else lm_head.logits(as_float32(logits.states))


def answers(
    found: Distribution, positions: NDArray[np.integer[Any]], ids: NDArray[np.integer[Any]], vocab_size: int
) -> Answers:
    """log p(id at position) for M pairs; positions count supervised positions from 0."""
    places: NDArray[np.int64] = positions.astype(np.int64)
    tokens: NDArray[np.int64] = ids.astype(np.int64)
    if isinstance(found, np.ndarray):
        picked = found[places, tokens].astype(np.float64)
        return Answers(logprobs=picked - log_normalisers(found)[places], kept=np.ones(len(tokens), np.bool_))
    entry, kept = _entries_of(found, np.diff(found.offsets), places, tokens)
    known, others = entry_values(found, vocab_size)
    values: NDArray[np.float64] = others[places]
    values[kept] = known[entry[kept]]
    return Answers(logprobs=values, kept=kept)


def entry_values(
    found: TruncatedLogits | SampledLogits, vocab_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-probability of each entry, float64 [E], and of any one other token at each position, float64 [N]."""
    counts = np.diff(found.offsets)
    if isinstance(found, TruncatedLogits):
        tail = _tail(found)
        return found.logprobs.astype(np.float64), tail - np.log(np.maximum(vocab_size - counts, 1))
    draws = found.draws_per_position().astype(np.float64)
    known = np.log((found.counts + 1 / vocab_size) / (np.repeat(draws, counts) + 1))
    return known, np.log(1 / vocab_size / (draws + 1))


def entropies(found: Distribution, vocab_size: int) -> NDArray[np.float64]:
    """Entropy at each position in nats, float64 [N]; for `topk` and `nucleus` the largest possible with the tail, where
    that is unknown the entropy of the entries alone."""
    if isinstance(found, SampledLogits):
        return found.entropy.astype(np.float64)
    if isinstance(found, TruncatedLogits):
        return _largest_entropies(found, vocab_size)
    values = np.empty(len(found))
    for start in range(0, len(found), ROWS):
        rows = found[start : start + ROWS].astype(np.float64)
        rows -= log_normalisers(rows)[:, None]
        values[start : start + ROWS] = -(np.exp(rows) * rows).sum(1)
    return values


def log_normalisers(logits: NDArray[Any]) -> NDArray[np.float64]:
    """log-sum-exp of each row, float64 [N]."""
    values = np.empty(len(logits))
    for start in range(0, len(logits), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        largest = rows.max(1)
        values[start : start + ROWS] = largest + np.log(np.exp(rows - largest[:, None]).sum(1))
    return values


def _tail(found: TruncatedLogits) -> NDArray[np.float64]:
    """Log-mass outside the entries, float64 [N]; -inf where it is unknown, as the entries then sum to 1."""
    if found.tail_logmass is None:
        return np.full(found.num_positions, -np.inf)
    return found.tail_logmass.astype(np.float64)


def _largest_entropies(found: TruncatedLogits, vocab_size: int) -> NDArray[np.float64]:
    counts = np.diff(found.offsets)
    logprobs, tail = found.logprobs.astype(np.float64), _tail(found)
    terms = np.concatenate([[0.0], np.cumsum(np.exp(logprobs) * logprobs)])
    kept: NDArray[np.float64] = -(terms[found.offsets[1:]] - terms[found.offsets[:-1]])
    spread = np.where(tail > -np.inf, tail, 0) - np.log(np.maximum(vocab_size - counts, 1))
    largest: NDArray[np.float64] = kept - np.exp(tail) * spread
    return largest


def _entries_of(
    found: TruncatedLogits | SampledLogits,
    counts: NDArray[np.int64],
    positions: NDArray[np.int64],
    ids: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Index of the entry that answers each question, and whether it exists."""
    codes = np.repeat(np.arange(len(counts), dtype=np.int64), counts) << 32 | found.ids.astype(np.int64)
    if not len(codes):
        return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
    order = np.argsort(codes, kind="stable")
    wanted = positions << 32 | ids
    place = np.minimum(np.searchsorted(codes[order], wanted), len(codes) - 1)
    entry: NDArray[np.int64] = order[place]
    return entry, codes[entry] == wanted
