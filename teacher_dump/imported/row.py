"""One sample of another tool's file, in the one form that every reader gives.

S tokens of the file's sequence, M distributions, E entries of all distributions together.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.errors import SampleError


@dataclass(frozen=True, kw_only=True, eq=False)
class ForeignRow:
    """Log-probabilities of the tokens of one sequence.

    Attributes:
        where: file and number of the row, for messages.
        id: the sample's id in the file; None if it has none.
        tokens: the whole sequence, int64 [S]; None if the file does not have it.
        num_tokens: S where the file shows it without having the tokens; else None.
        lengths: numbers of tokens from the start that may be the sample's, the preferred one first. Tools add a padding
            token or generate one more. Empty if `tokens` is None.
        predicts: for each distribution the place of the token that it is of, int64 [M].
        from_end: whether `predicts` counts from the end of the sequence (-1 is the last token), because the
            distributions cover only the end, or the number of tokens is not known.
        ids: token ids, int64 [E].
        logprobs: natural logs, float32 [E].
        offsets: entries of distribution m are `offsets[m]:offsets[m + 1]`; int64 [M + 1].
        problem: why the row is unusable, or None.
    """

    where: str
    id: str | None = None
    tokens: NDArray[np.int64] | None = None
    num_tokens: int | None = None
    lengths: tuple[int, ...] = ()
    predicts: NDArray[np.int64]
    from_end: bool = False
    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    offsets: NDArray[np.int64]
    problem: str | None = None


def row_of_lists(
    where: str,
    entries: list[tuple[list[int], list[float]] | None],
    *,
    id: str | None,
    predicts: list[int],
    from_end: bool = False,
    tokens: list[int] | None = None,
    num_tokens: int | None = None,
    lengths: tuple[int, ...] = (),
) -> ForeignRow:
    """A row whose distributions are lists of ids and log-probabilities; None where there is no distribution."""
    there = [(place, found) for place, found in zip(predicts, entries, strict=True) if found is not None and found[0]]
    counts = [len(ids) for _, (ids, _) in there]
    return ForeignRow(
        where=where,
        id=id,
        tokens=None if tokens is None else np.array(tokens, np.int64),
        num_tokens=num_tokens,
        lengths=lengths if lengths or tokens is None else (len(tokens),),
        predicts=np.array([place for place, _ in there], np.int64),
        from_end=from_end,
        ids=np.fromiter(chain.from_iterable(ids for _, (ids, _) in there), np.int64),
        logprobs=np.fromiter(chain.from_iterable(values for _, (_, values) in there), np.float32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def unusable_row(where: str, id: str | None, problem: str) -> ForeignRow:
    """A row without distributions, and why."""
    none = np.zeros(0, np.int64)
    return ForeignRow(
        where=where,
        id=id,
        predicts=none,
        ids=none,
        logprobs=np.zeros(0, np.float32),
        offsets=np.zeros(1, np.int64),
        problem=problem,
    )


def integers(value: Any, name: str) -> list[int]:
    """A list of token ids.

    Raises:
        SampleError: another value, with its name.
    """
    if not isinstance(value, list) or not all(type(entry) is int and 0 <= entry < 1 << 32 for entry in value):
        raise SampleError(f"{name} is {value!r:.60}, expected a list of token ids")
    return value


def number(value: Any, name: str) -> float:
    """A log-probability.

    Raises:
        SampleError: not a number, with its name.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SampleError(f"{name} is {value!r:.60}, expected a number")
    return float(value)
