"""From a row of another tool to the distributions at the sample's supervised positions.

N supervised positions, L positions, M distributions of the row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.teacher_dump.imported.places import ANY, Decode, places_in, spliced_ids
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Tokens

NO_ROW = -1
# probabilities that are normalised over the vocabulary sum to at most 1 plus rounding
MASS_TOLERANCE = 1e-3
# a probability of float32 is known to half a unit of its last place
ROUNDING = 2.0**-24


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of each distribution.

    Attributes:
        top_k: number of most probable tokens; the label is kept too where the file has it.
        knows_tail: whether the values are normalised over the whole vocabulary; else they are normalised over the
            entries.
        exponent: the files' probabilities to this power are proportional to the teacher's; 1 leaves them unchanged.
        vocab_size: V.
        num_tokens: entries of the tokenizer. Columns after them are padding: a dump gives them no mass, and here theirs
            counts as part of the tail.
    """

    top_k: int
    knows_tail: bool
    exponent: float
    vocab_size: int
    num_tokens: int


def supervised_rows(row: ForeignRow, tokens: Tokens, decode: Decode, *, shift: int = 0) -> NDArray[np.int64]:
    """The distribution at each supervised position, -1 where there is none; int64 [N].

    Args:
        shift: 1 if distributions are in the row before that of the token that they are of.

    Raises:
        SampleError: the row is unusable, or its tokens are not those of the sample.
    """
    if row.problem is not None:
        raise SampleError(f"{row.where}: {row.problem}")
    L = tokens.positions.length
    if row.tokens is None:
        places, count = np.arange(L, dtype=np.int64), L
    else:
        places, count = places_in(row, tokens, decode), len(row.tokens)
    of_place = np.full(count + 1, NO_ROW, np.int64)
    predicted = row.predicts + shift + (count if row.from_end else 0)
    inside = (predicted >= 0) & (predicted < count)
    of_place[predicted[inside]] = np.flatnonzero(inside)
    if row.tokens is None:
        _check_tokens(row, tokens, of_place, decode)
    return of_place[places[tokens.positions.supervised_positions + 1]]


def logits_of(row: ForeignRow, chosen_N: NDArray[np.int64], labels_N: NDArray[np.int32], kept: Kept) -> TruncatedLogits:
    """The record's distributions.

    Args:
        chosen_N: distribution of the row at each supervised position.
        labels_N: the token that follows each position.

    Raises:
        SampleError: a position has no distribution, or one that is none.
    """
    if len(missing := np.flatnonzero(chosen_N == NO_ROW)):
        raise SampleError(
            f"{row.where}: has no distribution at {len(missing)} of {len(chosen_N)} supervised positions; the first is "
            f"that of supervised token {int(missing[0])}"
        )
    found = [
        _Position.of(row, int(number), kept).cut(int(label), kept, f"{row.where}: supervised token {place}")
        for place, (number, label) in enumerate(zip(chosen_N, labels_N, strict=True))
    ]
    counts = [len(position.ids) for position in found]
    tails = np.array([position.tail for position in found], np.float32)
    return TruncatedLogits(
        ids=np.concatenate([np.zeros(0, np.int64), *(position.ids for position in found)]).astype(np.uint32),
        logprobs=np.concatenate([np.zeros(0), *(position.logprobs for position in found)]).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        tail_logmass=tails if kept.knows_tail else None,
    )


@dataclass(frozen=True, eq=False)
class _Position:
    """One distribution: its entries in float64, and the log-mass of all other tokens."""

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float64]
    tail: float = -np.inf

    @classmethod
    def of(cls, row: ForeignRow, number: int, kept: Kept) -> "_Position":
        """Distribution `number` of the row, without entries of probability 0 and without padding."""
        entries = slice(int(row.offsets[number]), int(row.offsets[number + 1]))
        ids, logprobs = row.ids[entries], row.logprobs[entries].astype(np.float64)
        # ids beyond all columns stay: they are refused when the record is written
        there = (logprobs != -np.inf) & ((ids < kept.num_tokens) | (ids >= kept.vocab_size))
        return cls(ids[there], logprobs[there])

    def cut(self, label: int, kept: Kept, where: str) -> "_Position":
        """The most probable entries and the label, normalised."""
        self._check(where)
        order = np.argsort(-self.logprobs, kind="stable")
        order = np.concatenate([order[: kept.top_k], [at for at in order[kept.top_k :] if self.ids[at] == label]])
        order = order.astype(np.int64)
        ids, logprobs = self.ids[order], self.logprobs[order]
        if not kept.knows_tail:
            powered = logprobs * kept.exponent
            return _Position(ids, powered - _log_sum(powered))
        whole, mass = np.exp(self.logprobs).sum(), float(np.exp(logprobs).sum())
        if whole > 1 + MASS_TOLERANCE:
            raise SampleError(
                f"{where}: probabilities sum to {whole:.4f}, so they are not normalised over the whole vocabulary; "
                "give --tail unknown if they are normalised over other tokens"
            )
        if len(ids) == kept.num_tokens:
            return _Position(ids, logprobs)
        # a tail below the rounding of the sum is not known, and must not become 0: reverse KL would be infinite
        return _Position(ids, logprobs, float(np.log(max(1 - mass, len(ids) * ROUNDING))))

    def _check(self, where: str) -> None:
        if not len(self.ids):
            raise SampleError(f"{where}: the distribution has no entries")
        if not np.isfinite(self.logprobs).all():
            raise SampleError(f"{where}: a log-probability is {self.logprobs[~np.isfinite(self.logprobs)][0]}")
        if len(np.unique(self.ids)) != len(self.ids):
            raise SampleError(f"{where}: a token is listed twice")


def _log_sum(logprobs: NDArray[np.float64]) -> float:
    highest = logprobs.max()
    return float(highest + np.log(np.exp(logprobs - highest).sum()))


def _check_tokens(row: ForeignRow, tokens: Tokens, of_place: NDArray[np.int64], decode: Decode) -> None:
    """Without ids in the file, every distribution must have the sample's token among its entries.

    Raises:
        SampleError: one has not; names the token.
    """
    L = len(of_place) - 1
    if row.num_tokens not in (None, L) or len(row.predicts) > L:
        found = row.num_tokens if row.num_tokens is not None else len(row.predicts)
        raise SampleError(f"{row.where}: has distributions of {found} tokens, the checkpoint makes {L}")
    for place, expected in enumerate(spliced_ids(tokens)):
        if (number := int(of_place[place])) == NO_ROW or expected == ANY:
            continue
        if int(expected) not in row.ids[int(row.offsets[number]) : int(row.offsets[number + 1])]:
            raise SampleError(
                f"{row.where}: the file has no token ids, and its distribution of token {place} lacks "
                f"{int(expected)} ({decode([int(expected)])!r:.40}), which the checkpoint makes there; write the ids "
                "into the file, or use the tokenizer and template with which it was made"
            )


@dataclass
class ShiftCounts:
    """How often the sample's next token is among the entries of its distribution, of the one before and the one after.

    Attributes:
        positions: compared positions.
        own, before, after: positions whose token is among the entries of the distribution at its own place, of the one
            of the token before it, and of the one after it.
    """

    positions: int = 0
    own: int = 0
    before: int = 0
    after: int = 0

    def add(self, row: ForeignRow, chosen_N: NDArray[np.int64], labels_N: NDArray[np.int32], shift: int = 0) -> None:
        """Count one sample, where three neighbouring distributions are there and their tokens differ.

        Args:
            shift: the shift with which `chosen_N` was made; the counts are those without it.
        """
        if shift:
            chosen_N = np.concatenate([chosen_N[shift:], np.full(shift, NO_ROW)])
        for place in range(1, len(labels_N) - 1):
            if NO_ROW in chosen_N[place - 1 : place + 2] or len({*labels_N[place - 1 : place + 2].tolist()}) < 3:
                continue
            label = int(labels_N[place])
            has = [
                label in row.ids[int(row.offsets[number]) : int(row.offsets[number + 1])]
                for number in chosen_N[place - 1 : place + 2].tolist()
            ]
            self.positions += 1
            self.before, self.own, self.after = self.before + has[0], self.own + has[1], self.after + has[2]

    def clearly_more(self, some: int, others: int) -> bool:
        """Whether one number of positions is larger than another by four standard errors, and by a twentieth."""
        n = self.positions
        if n < MIN_POSITIONS:
            return False
        p, q = some / n, others / n
        return p - q > max(0.05, 4 * float(np.sqrt((p * (1 - p) + q * (1 - q)) / n)))


MIN_POSITIONS = 16
