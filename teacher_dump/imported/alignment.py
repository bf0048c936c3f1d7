"""Which distribution of a row belongs to which supervised position of its sample.

N supervised positions, L positions, M distributions of the row.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.teacher_dump.imported.places import ANY, Decode, places_in, spliced_ids
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Tokens

NO_ROW = -1


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
