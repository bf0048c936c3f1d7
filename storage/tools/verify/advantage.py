"""Visual advantage of a store: how much more probable the labels are for the teacher with their images.

A teacher that does not see its images (a projector that was not loaded, for example) writes intact targets; its visual
advantage is 0 at every position, up to the rounding of its dtype.
"""

from dataclasses import dataclass

import numpy as np

from alignkd.storage.record.record import Record
from alignkd.storage.schema.targets.counterfactual import ADVANTAGE

# of a position whose label depends on the image, in nats
CLEAR_ADVANTAGE = 0.1
# fewer positions may be 0 by chance: a single text whose answer is certain
MIN_POSITIONS = 32

# difference that rounding makes between the two passes, in nats: they may be in batches of different size
_ROUNDING = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.1}
_ROUNDING_QUANTIZED = 0.25


def advantage_rounding(precision: str) -> float:
    """Largest visual advantage that rounding explains, for a teacher of this `dtype` in the manifest's fingerprint."""
    return _ROUNDING.get(precision, _ROUNDING_QUANTIZED)


@dataclass(frozen=True, kw_only=True)
class AdvantageSums:
    """Figures over supervised positions of samples with images.

    Attributes:
        positions: number of positions.
        total: sum of the visual advantage, in nats.
        clear: positions at which it exceeds 0.1.
        largest: largest absolute value.
    """

    positions: int = 0
    total: float = 0.0
    clear: int = 0
    largest: float = 0.0

    def __add__(self, other: "AdvantageSums") -> "AdvantageSums":
        return AdvantageSums(
            positions=self.positions + other.positions,
            total=self.total + other.total,
            clear=self.clear + other.clear,
            largest=max(self.largest, other.largest),
        )

    @property
    def mean(self) -> float:
        """Mean visual advantage in nats; 0 without a position."""
        return self.total / max(1, self.positions)

    def problems(self, rounding: float) -> list[str]:
        """One line if the teacher does not see its images; `rounding` as from `advantage_rounding`."""
        if self.positions < MIN_POSITIONS or self.largest > rounding:
            return []
        return [
            f"visual advantage is at most {self.largest:.2g} nats at all {self.positions} positions, which rounding "
            f"explains ({rounding:g}): the teacher ignores its images; check its projector's weights and dump again"
        ]


def advantage_sums(record: Record) -> AdvantageSums:
    """The figures of one record; none if it has no image or the store no counterfactual pass."""
    stored = record.more.get(ADVANTAGE)
    if not isinstance(stored, np.ndarray) or not stored.size:
        return AdvantageSums()
    values = stored.astype(np.float64)
    return AdvantageSums(
        positions=values.size,
        total=float(values.sum()),
        clear=int(np.count_nonzero(values > CLEAR_ADVANTAGE)),
        largest=float(np.abs(values).max()),
    )
