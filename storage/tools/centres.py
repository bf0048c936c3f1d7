"""The teacher's class means: the mean of its last hidden states before each token, of which the loss `nd` needs them.

A class is a next token. Shapes: N supervised positions, Dt hidden size, M tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import StoreError
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.distributions import HiddenStates
from alignkd.storage.record.encoded import as_float32
from alignkd.storage.record.record import IGNORE_LABEL, Record


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMeans:
    """Means of the states whose next token is the same.

    Attributes:
        tokens: int64 [M], rising.
        means: float32 [M, Dt].
        counts: int64 [M], positions of each mean.
        positions: supervised positions that were read.
        left_out: tokens with fewer positions than the minimum.
        positions_left_out: positions of these tokens.
        records: records that were read.
    """

    tokens: NDArray[np.int64]
    means: NDArray[np.float32]
    counts: NDArray[np.int64]
    positions: int
    left_out: int
    positions_left_out: int
    records: int


def class_means(
    reader: StoreReader,
    *,
    min_count: int,
    max_records: int | None = None,
    progress: Callable[[int], object] = lambda records: None,
) -> ClassMeans:
    """Compute the means over a store whose logits are stored as hidden states.

    Sums are in float64, in the order of the records.

    Args:
        min_count: tokens with fewer positions get no mean.
        max_records: read this many records, evenly spaced over the store; None: all.

    Raises:
        StoreError: the store keeps other logits, or no token has enough positions.
        CorruptStoreError: a record is damaged.
    """
    kind = reader.manifest.codecs.logits.kind
    if kind != "hidden":
        raise StoreError(
            f"store {reader.path}: keeps logits {kind!r}, but class means need hidden states; dump some samples of the "
            "teacher with store.logits.kind hidden"
        )
    chosen = _evenly(len(reader), max_records)
    sums: dict[int, NDArray[np.float64]] = {}
    counts: dict[int, int] = {}
    for place in chosen:
        _add(reader[int(place)], sums, counts)
        progress(1)
    kept = sorted(token for token, count in counts.items() if count >= min_count)
    if not kept:
        raise StoreError(
            f"store {reader.path}: no token has {min_count} of the {sum(counts.values())} supervised positions of "
            f"{len(chosen)} records; lower --min-count or read more records"
        )
    return ClassMeans(
        tokens=np.array(kept, np.int64),
        means=np.stack([(sums[token] / counts[token]).astype(np.float32) for token in kept]),
        counts=np.array([counts[token] for token in kept], np.int64),
        positions=sum(counts.values()),
        left_out=len(counts) - len(kept),
        positions_left_out=sum(counts.values()) - sum(counts[token] for token in kept),
        records=len(chosen),
    )


def _evenly(total: int, most: int | None) -> NDArray[np.int64]:
    if most is None or most >= total:
        return np.arange(total)
    return np.unique(np.linspace(0, total - 1, most).astype(np.int64))


def _add(record: Record, sums: dict[int, NDArray[np.float64]], counts: dict[int, int]) -> None:
    """Add the states of one record to those of their next tokens."""
    assert isinstance(record.logits, HiddenStates)
    labels: NDArray[Any] = record.labels[1:][record.labels[1:] != IGNORE_LABEL]
    if not len(labels):
        return
    order = np.argsort(labels, kind="stable")
    tokens, starts, numbers = np.unique(labels[order], return_index=True, return_counts=True)
    states_ND = as_float32(record.logits.states)[order].astype(np.float64)
    for token, total, number in zip(tokens.tolist(), np.add.reduceat(states_ND, starts), numbers.tolist(), strict=True):
        sums[token] = total if token not in sums else sums[token] + total
        counts[token] = counts.get(token, 0) + number
