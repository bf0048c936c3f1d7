"""`topk` and `nucleus`: kept entries of the teacher's distribution, plus one tail bucket per position.

Stored per supervised position: the number of entries (uint32) and the tail's log-mass (float32); per entry:
the id (uint16 while the vocabulary fits, else uint32) and the log-prob. Where the tail is unknown it is not stored.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, Shape
from alignkd.storage.errors import RecordError, StoreError
from alignkd.storage.logits.csr import COUNTS_DTYPE, ENTRY_COUNTS, ENTRY_IDS, check_ids, id_dtype, offsets_of
from alignkd.storage.record.distributions import TruncatedLogits

LOGPROBS = "entry_logprobs"
TAIL = "tail_logmass"
# error of a sum over the vocabulary in float32
MASS_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class TruncatedLogitsCodec:
    """Codec of `TruncatedLogits`; ids and tail exact, log-probs with the error of `dtype`.

    Attributes:
        max_entries: most entries per position; the label may add one.
        min_entries: fewest entries per position of `nucleus`; a smaller vocabulary is kept whole.
        mass: mass of `nucleus`, which the entries of each position with fewer than `max_entries` have; None for `topk`.
        dtype: codec of the log-probs.
        knows_tail: whether the mass outside the entries is known; else the entries of a position sum to 1.
    """

    vocab_size: int
    max_entries: int
    min_entries: int = 1
    mass: float | None = None
    dtype: str
    knows_tail: bool = True
    value_type = TruncatedLogits

    @property
    def kind(self) -> str:
        return "topk" if self.mass is None else "nucleus"

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        tail = [(TAIL, "supervised", np.dtype("<f4"), ())] if self.knows_tail else []
        return [
            (ENTRY_COUNTS, "supervised", COUNTS_DTYPE, ()),
            *tail,
            (ENTRY_IDS, "entry", id_dtype(self.vocab_size), ()),
            (LOGPROBS, "entry", get_codec(self.dtype).parts(())[""][0], ()),
        ]

    def encode(self, logits: TruncatedLogits) -> Parts:
        """Raises:
        RecordError: an id outside the vocabulary, or a position with too few or too many entries or too little mass.
        StoreError: one of record and store knows the tail, the other does not.
        """
        counts, tail = np.diff(logits.offsets), logits.tail_logmass
        if (tail is not None) != self.knows_tail:
            found, kept = ("known", "unknown") if tail is not None else ("unknown", "known")
            raise StoreError(f"logits: the tail of the record is {found}, the store keeps tail {kept}; make them agree")
        check_ids(logits.ids, self.vocab_size)
        self._check_counts(counts)
        self._check_mass(counts, tail)
        return {
            ENTRY_COUNTS: counts.astype(COUNTS_DTYPE),
            **({} if tail is None else {TAIL: tail.astype("<f4", copy=False)}),
            ENTRY_IDS: logits.ids.astype(id_dtype(self.vocab_size), copy=False),
            LOGPROBS: get_codec(self.dtype).encode(logits.logprobs)[""],
        }

    def decode(self, read: ReadRows) -> TruncatedLogits:
        return TruncatedLogits.trusted(
            {
                "ids": read(ENTRY_IDS),
                "logprobs": read(LOGPROBS),
                "offsets": offsets_of(read(ENTRY_COUNTS)),
                "tail_logmass": read(TAIL) if self.knows_tail else None,
            }
        )

    def describe(self) -> dict[str, Any]:
        values = "natural log of probabilities over the whole vocabulary; the tail is what the entries leave"
        if not self.knows_tail:
            values = "natural log of probabilities over the entries of a position; the tail is unknown"
        return {
            "codec_id": self.kind,
            "values": values,
            "max_entries": self.max_entries,
            "min_entries": self.min_entries,
            "mass": self.mass,
            "dtype": self.dtype,
            "error_bound": get_codec(self.dtype).describe()["error_bound"],
        }

    def _check_counts(self, counts: NDArray[np.int64]) -> None:
        smallest = min(self.min_entries, self.vocab_size)
        if counts.size and (counts.max() > self.max_entries + 1 or counts.min() < smallest):
            settings = f"top_k {self.max_entries}" if self.mass is None else f"max_entries {self.max_entries}"
            raise RecordError(
                f"logits keep {counts.min()}..{counts.max()} entries per position, expected "
                f"{smallest}..{self.max_entries + 1} ({settings} and the label)"
            )

    def _check_mass(self, counts: NDArray[np.int64], tail_logmass: NDArray[np.float32] | None) -> None:
        if self.mass is None or tail_logmass is None:
            return
        kept = 1 - np.exp(tail_logmass.astype(np.float64))
        short = np.flatnonzero((counts < self.max_entries) & (kept < self.mass - MASS_TOLERANCE))
        if short.size:
            position = int(short[0])
            raise RecordError(
                f"logits at supervised position {position} keep mass {kept[position]:.4f} in {counts[position]} "
                f"entries, expected mass {self.mass} or {self.max_entries} entries"
            )
