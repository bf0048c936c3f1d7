"""The forms of the teacher's next-token distribution in a record, other than full logits.

N supervised positions, V vocabulary, E entries of all positions together, Dt hidden size of the teacher.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import RecordError
from alignkd.storage.record.checks import FLOATS, check_array, check_finite, check_offsets, check_target
from alignkd.storage.record.encoded import EncodedArray, FloatArray
from alignkd.storage.record.shown import show_fields

# float16 log-probs near -16 are 1/128 apart, so exact masses come back up to about 1 % off
MASS_TOLERANCE = 0.02
# rounding of the entropy of a confident teacher, summed in float32
ENTROPY_TOLERANCE = 1e-3

IDS = (np.uint16, np.uint32)
T = TypeVar("T")


def unchecked(cls: type[T], fields: dict[str, Any]) -> T:
    """An instance of a frozen dataclass without its checks."""
    instance = object.__new__(cls)
    instance.__dict__.update(fields)
    return instance


@dataclass(frozen=True, kw_only=True, eq=False)
class TruncatedLogits:
    """Kept entries of the teacher's distribution at N supervised positions, in CSR form.

    Attributes:
        ids: token ids, uint16 or uint32 [E].
        logprobs: natural logs, normalised with the log-sum-exp over all of V; float16 or float32 [E]. With an unknown
            tail they are normalised over the entries of their position.
        offsets: entries of position n are `offsets[n]:offsets[n + 1]`; int64 [N + 1].
        tail_logmass: natural log of the mass outside the entries, -inf if there is none; float32 [N]. None if it is
            not known (`LogitsCodec.tail`).
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    logprobs: FloatArray
    offsets: NDArray[np.int64]
    tail_logmass: NDArray[np.float32] | None

    def __repr__(self) -> str:
        return show_fields(self)

    def __post_init__(self) -> None:
        """Check shapes, dtypes, and that entries and tail sum to 1.

        Raises:
            RecordError: names the field and both values.
        """
        check_array("ids", self.ids, IDS, 1)
        check_array("logprobs", self.logprobs, FLOATS, 1)
        entries = {"ids": len(self.ids), "logprobs": len(self.logprobs)}
        if self.tail_logmass is None:
            check_offsets(self.offsets, ("offsets", len(self.offsets) - 1), entries)
        else:
            check_array("tail_logmass", self.tail_logmass, (np.float32,), 1)
            check_offsets(self.offsets, ("tail_logmass", len(self.tail_logmass)), entries)
        check_finite("logprobs", self.logprobs)
        self._check_mass()

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "TruncatedLogits":
        """Entries without checks, for the reading path, where a checksum has verified them."""
        return unchecked(cls, fields)

    @property
    def num_positions(self) -> int:
        """N, number of positions."""
        return len(self.offsets) - 1

    def masses(self) -> NDArray[np.float64]:
        """Sum of the probabilities at each position with the tail, where it is known; float64 [N]."""
        cumulative = np.concatenate([[0.0], np.cumsum(np.exp(self.logprobs.astype(np.float64)))])
        mass: NDArray[np.float64] = cumulative[self.offsets[1:]] - cumulative[self.offsets[:-1]]
        return mass if self.tail_logmass is None else mass + np.exp(self.tail_logmass.astype(np.float64))

    def _check_mass(self) -> None:
        mass = self.masses()
        wrong = np.flatnonzero(~(np.abs(mass - 1.0) <= MASS_TOLERANCE))
        if not wrong.size:
            return
        shown = f"logits at supervised position {wrong[0]} hold mass {mass[wrong[0]]:.4f}"
        if self.tail_logmass is None:
            raise RecordError(f"{shown}, expected 1: the tail is unknown, so normalise over the entries")
        raise RecordError(
            f"{shown} with the tail, expected 1: normalise with the log-sum-exp over the whole vocabulary"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledLogits:
    """Tokens drawn from the teacher's own distribution (temperature 1, with replacement) at N positions, CSR form.

    With counts / sum of counts as weights, -entropy - sum(weight * student_logprob) is an unbiased estimate of
    the forward KL(teacher || student), but not of other divergences.

    Attributes:
        ids: distinct drawn ids of each position, uint16 or uint32 [E].
        counts: number of times each was drawn, at least 1; uint8 or uint16 [E].
        offsets: entries of position n are `offsets[n]:offsets[n + 1]`; int64 [N + 1].
        entropy: entropy of the teacher's whole distribution, in nats; float32 [N].
    """

    ids: NDArray[np.uint16] | NDArray[np.uint32]
    counts: NDArray[np.uint8] | NDArray[np.uint16]
    offsets: NDArray[np.int64]
    entropy: NDArray[np.float32]

    def __repr__(self) -> str:
        return show_fields(self)

    def __post_init__(self) -> None:
        """Check shapes, dtypes, that ids are distinct and that every position has the same number of draws.

        Raises:
            RecordError: names the field and both values.
        """
        check_array("ids", self.ids, IDS, 1)
        check_array("counts", self.counts, (np.uint8, np.uint16), 1)
        check_array("entropy", self.entropy, (np.float32,), 1)
        check_offsets(self.offsets, ("entropy", len(self.entropy)), {"ids": len(self.ids), "counts": len(self.counts)})
        check_finite("entropy", self.entropy)
        if self.entropy.size and self.entropy.min() < -ENTROPY_TOLERANCE:
            raise RecordError(f"entropy is {self.entropy.min():.6g} nats, expected 0 or more")
        if self.counts.size and not self.counts.all():
            raise RecordError("counts has a 0, expected ids that were drawn")
        self._check_draws()

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "SampledLogits":
        """Draws without checks, for the reading path, where a checksum has verified them."""
        return unchecked(cls, fields)

    @property
    def num_positions(self) -> int:
        """N, number of positions."""
        return len(self.entropy)

    def draws_per_position(self) -> NDArray[np.int64]:
        """Sum of the counts at each position, int64 [N]."""
        cumulative = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])
        draws: NDArray[np.int64] = cumulative[self.offsets[1:]] - cumulative[self.offsets[:-1]]
        return draws

    def _check_draws(self) -> None:
        draws = self.draws_per_position()
        if draws.size and (draws != draws[0]).any():
            raise RecordError(f"counts sum to {draws.min()}..{draws.max()} draws per position, expected one number")
        position = np.repeat(np.arange(self.num_positions, dtype=np.int64), np.diff(self.offsets))
        distinct = len(np.unique(position << 32 | self.ids))
        if distinct != len(self.ids):
            raise RecordError(f"ids has {len(self.ids) - distinct} that repeat within a position, expected none")


@dataclass(frozen=True, kw_only=True, eq=False)
class HiddenStates:
    """The teacher's last hidden states, from which its `lm_head` computes all logits.

    Attributes:
        states: after the final norm, before `lm_head`; [N, Dt].
    """

    states: FloatArray | EncodedArray

    def __repr__(self) -> str:
        return show_fields(self)

    def __post_init__(self) -> None:
        """Check shape, dtype and finiteness.

        Raises:
            RecordError: names the field and both values.
        """
        check_target("hidden states", "hidden", self.states, 2)

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> "HiddenStates":
        """States without checks, for the reading path, where a checksum has verified them."""
        return unchecked(cls, fields)

    @property
    def num_positions(self) -> int:
        """N, number of positions."""
        return self.states.shape[0]
