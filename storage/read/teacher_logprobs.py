"""The teacher's log-probabilities at the supervised positions of one record, in one of two forms.

N supervised positions, V vocabulary, E entries of all positions together.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.read.lm_head import LM_HEAD_FILE, LmHead
from alignkd.storage.read.logprobs import ROWS, answers, distribution_of, entry_values, log_normalisers
from alignkd.storage.record.distributions import SampledLogits, TruncatedLogits
from alignkd.storage.record.record import Logits
from alignkd.storage.record.shown import show_fields
from alignkd.storage.schema.manifest import Manifest


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseLogprobs:
    """Every token's log-probability: stores with logits of kind `full` or `hidden`.

    Attributes:
        kind: kind of the store's logits.
        values: natural log, normalised over the vocabulary; float32 [N, V].
    """

    kind: str
    values: NDArray[np.float32]

    def __repr__(self) -> str:
        return show_fields(self)

    def of(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Log-probability of one token id per position (such as the labels), [N] -> float32 [N].

        Raises:
            ValueError: `ids` are not N integers from 0 to V - 1.
        """
        positions, vocab_size = self.values.shape
        found: NDArray[np.float32] = self.values[np.arange(positions), _checked(ids, positions, vocab_size)]
        return found

    def dense(self) -> NDArray[np.float32]:
        """`values`, so that callers need not distinguish the two forms."""
        return self.values


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseLogprobs:
    """Log-probabilities of some tokens per position: stores with logits of kind `topk`, `nucleus` or `sampled`.

    Attributes:
        kind: kind of the store's logits.
        ids: token ids, int64 [E].
        logprobs: natural log, float32 [E]. `topk`, `nucleus`: normalised over the whole vocabulary, or over the entries
            where the tail is unknown. `sampled`: log of draws / all draws of the position, an estimate.
        offsets: entries of position n are `offsets[n]:offsets[n + 1]`; int64 [N + 1].
        tail_logmass: natural log of the probability of all other tokens together, -inf where it is 0; float32 [N].
            None for `sampled`, and where the store does not know it (`tail: unknown`).
        entropy: exact entropy of the teacher's whole distribution in nats, float32 [N]; `sampled` only, else None.
        vocab_size: V.
    """

    kind: str
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    offsets: NDArray[np.int64]
    tail_logmass: NDArray[np.float32] | None
    entropy: NDArray[np.float32] | None
    vocab_size: int
    _stored: TruncatedLogits | SampledLogits = field(repr=False)

    def __repr__(self) -> str:
        return show_fields(self)

    def of(self, ids: NDArray[Any]) -> NDArray[np.float32]:
        """Log-probability of one token id per position (such as the labels), [N] -> float32 [N].

        Estimates a token that is not among the entries, as `dense` does.

        Raises:
            ValueError: `ids` are not N integers from 0 to V - 1.
        """
        positions = np.arange(len(self.offsets) - 1)
        checked = _checked(ids, len(positions), self.vocab_size)
        return answers(self._stored, positions, checked, self.vocab_size).logprobs.astype(np.float32)

    def dense(self) -> NDArray[np.float32]:
        """An estimate for every token, float32 [N, V], normalised.

        `topk`, `nucleus`: entries are exact, the tail is spread evenly over the other tokens; they are -inf where the
        tail is unknown. `sampled`: the draws and one more draw that is spread evenly over the vocabulary.
        """
        known, others = entry_values(self._stored, self.vocab_size)
        values = np.repeat(others.astype(np.float32)[:, None], self.vocab_size, axis=1)
        positions = np.repeat(np.arange(len(others)), np.diff(self.offsets))
        values[positions, self.ids] = known
        return values


Logprobs = DenseLogprobs | SparseLogprobs


def _checked(ids: NDArray[Any], positions: int, vocab_size: int) -> NDArray[np.int64]:
    """Token ids, one per position; a label of -100 or an id of another vocabulary must not give a plausible number."""
    found = np.asarray(ids)
    if found.shape != (positions,) or found.dtype.kind not in "iu":
        raise ValueError(f"ids are {found.dtype}{list(found.shape)}, expected {positions} integers, one per position")
    wrong = found[(found < 0) | (found >= vocab_size)]
    if wrong.size:
        raise ValueError(f"ids contain {wrong[0]}, expected token ids from 0 to {vocab_size - 1}")
    return found.astype(np.int64)


def teacher_logprobs(logits: Logits | None, manifest: Manifest, lm_head: LmHead | None, where: str) -> Logprobs:
    """The log-probabilities of a record's `logits`.

    Args:
        lm_head: the teacher's, for hidden states.
        where: names the store in errors.

    Raises:
        StoreError: the store keeps no logits, or hidden states without the teacher's lm_head.
    """
    kind = manifest.codecs.logits.kind
    found = distribution_of(logits, lm_head)
    if found is None:
        if kind == "hidden":
            raise StoreError(
                f"{where}: logits.kind is hidden, but {LM_HEAD_FILE} is not attached; dump the store again"
            )
        raise StoreError(f"{where}: logits.kind is {kind}, so there are no log-probabilities; dump with another kind")
    if isinstance(found, np.ndarray):
        return DenseLogprobs(kind=kind, values=_log_softmax(found))
    if isinstance(found, TruncatedLogits):
        logprobs, tail, entropy = found.logprobs, found.tail_logmass, None
    else:
        draws = np.repeat(found.draws_per_position(), np.diff(found.offsets))
        logprobs, tail, entropy = np.log(found.counts / draws), None, found.entropy
    return SparseLogprobs(
        kind=kind,
        ids=found.ids.astype(np.int64),
        logprobs=logprobs.astype(np.float32),
        offsets=found.offsets,
        tail_logmass=tail,
        entropy=entropy,
        vocab_size=manifest.shapes.vocab_size,
        _stored=found,
    )


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    values = np.empty(logits.shape, np.float32)
    for start in range(0, len(logits), ROWS):
        rows = logits[start : start + ROWS].astype(np.float64)
        values[start : start + ROWS] = rows - log_normalisers(rows)[:, None]
    return values
