"""Sums of attention rows: over the stored keys, the probabilities of one query sum to at most 1."""

from dataclasses import dataclass

import numpy as np

from alignkd.storage.record.encoded import as_float32, error_bound
from alignkd.storage.record.record import Record, Target
from alignkd.storage.schema.manifest import Manifest

# relative error of each term of a softmax that a device rounds to bfloat16
SOFTMAX_ROUNDING = 2**-8


@dataclass(frozen=True, kw_only=True)
class AttentionSums:
    """Figures over rows of one query and head each.

    Attributes:
        rows: number of rows.
        smallest: smallest value.
        smallest_sum, largest_sum: smallest and largest sum of a row.
        negative: number of values below 0 by more than the codec's error bound.
        above_one: number of rows whose sum exceeds 1 by more than the error bounds and the rounding of a softmax.
    """

    rows: int = 0
    smallest: float = np.inf
    smallest_sum: float = np.inf
    largest_sum: float = -np.inf
    negative: int = 0
    above_one: int = 0

    def __add__(self, other: "AttentionSums") -> "AttentionSums":
        return AttentionSums(
            rows=self.rows + other.rows,
            smallest=min(self.smallest, other.smallest),
            smallest_sum=min(self.smallest_sum, other.smallest_sum),
            largest_sum=max(self.largest_sum, other.largest_sum),
            negative=self.negative + other.negative,
            above_one=self.above_one + other.above_one,
        )

    def problems(self) -> list[str]:
        """One line for each problem."""
        found = []
        if self.negative:
            found.append(
                f"attention has {self.negative} negative values, the lowest {self.smallest:.3g}, expected none"
            )
        if self.above_one:
            found.append(
                f"attention sums to up to {self.largest_sum:.4f} in {self.above_one} of {self.rows} rows, expected at "
                "most 1: these are not probabilities; dump the targets again"
            )
        return found


def record_sums(record: Record, manifest: Manifest) -> AttentionSums:
    """Sums of all attention of a record: that of the first layer, and further targets of kind `attention`."""
    sums = AttentionSums() if record.attention is None else attention_sums(record.attention)
    for target in manifest.stored_more:
        if target.kind == "attention" and target.name in record.more:
            sums = sums + attention_sums(record.more[target.name])  # type: ignore[arg-type]
    return sums


def attention_sums(attention: Target) -> AttentionSums:
    """Sums of the rows of attention [k, R, Ht, C], whose k blocks belong to the same rows, or [R, n, C]."""
    values, bound = as_float32(attention), error_bound(attention)
    if not values.size:
        return AttentionSums()
    keys = (0, -1) if values.ndim == 4 else (-1,)
    sums = values.sum(keys, dtype=np.float64)
    allowed = 1 + SOFTMAX_ROUNDING + bound.sum(keys, dtype=np.float64)
    return AttentionSums(
        rows=sums.size,
        smallest=float(values.min()),
        smallest_sum=float(sums.min()),
        largest_sum=float(sums.max()),
        negative=int(np.count_nonzero(values < -bound)),
        above_one=int(np.count_nonzero(sums > allowed)),
    )
