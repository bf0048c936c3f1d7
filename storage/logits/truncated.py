"""`topk` and `nucleus`: kept entries of the teacher's distribution, plus one tail bucket per position.

Stored per supervised position: the number of entries (uint32) and the tail's log-mass (float32); per entry:
the id (uint16 while the vocabulary fits, else uint32) and the log-prob.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, Shape
from alignkd.storage.errors import RecordError
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
    """

    vocab_size: int
    max_entries: int
    min_entries: int = 1
    mass: float | None = None
    dtype: str
    value_type = TruncatedLogits

    @property
    def kind(self) -> str:
        return "topk" if self.mass is None else "nucleus"

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        return [
            (ENTRY_COUNTS, "supervised", COUNTS_DTYPE, ()),
            (TAIL, "supervised", np.dtype("<f4"), ()),
            (ENTRY_IDS, "entry", id_dtype(self.vocab_size), ()),
            (LOGPROBS, "entry", get_codec(self.dtype).parts(())[""][0], ()),
        ]

    def encode(self, logits: TruncatedLogits) -> Parts:
        """Raises:
        RecordError: an id outside the vocabulary, or a position with too few or too many entries or too little mass.
        """
        counts = np.diff(logits.offsets)
        check_ids(logits.ids, self.vocab_size)
        self._check_counts(counts)
        self._check_mass(counts, logits.tail_logmass)
        return {
            ENTRY_COUNTS: counts.astype(COUNTS_DTYPE),
            TAIL: logits.tail_logmass.astype("<f4", copy=False),
            ENTRY_IDS: logits.ids.astype(id_dtype(self.vocab_size), copy=False),
            LOGPROBS: get_codec(self.dtype).encode(logits.logprobs)[""],
        }

    def decode(self, read: ReadRows) -> TruncatedLogits:
        return TruncatedLogits.trusted(
            {
                "ids": read(ENTRY_IDS),
                "logprobs": read(LOGPROBS),
                "offsets": offsets_of(read(ENTRY_COUNTS)),
                "tail_logmass": read(TAIL),
            }
        )

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": self.kind,
            "values": "natural log of probabilities over the whole vocabulary; the tail is what the entries leave",
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

    def _check_mass(self, counts: NDArray[np.int64], tail_logmass: NDArray[np.float32]) -> None:
        if self.mass is None:
            return
        kept = 1 - np.exp(tail_logmass.astype(np.float64))
        short = np.flatnonzero((counts < self.max_entries) & (kept < self.mass - MASS_TOLERANCE))
        if short.size:
            position = int(short[0])
            raise RecordError(
                f"logits at supervised position {position} keep mass {kept[position]:.4f} in {counts[position]} "
                f"entries, expected mass {self.mass} or {self.max_entries} entries"
            )
