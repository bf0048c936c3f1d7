"""Kept entries of the teacher's distribution: ragged entries per position plus one tail bucket.

Stored per supervised position: the number of entries (uint32) and the tail's log-mass (float32); per entry:
the id (uint16 while the vocabulary fits, else uint32) and the log-prob.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.codecs import get_codec
from storage.errors import RecordError
from storage.record import TruncatedLogits


@dataclass(frozen=True)
class TruncatedLogitsCodec:
    """Codec of `TruncatedLogits` for one vocabulary; `dtype` names the codec of the log-probs."""

    vocab_size: int
    top_k: int
    dtype: str

    @property
    def id_dtype(self) -> np.dtype[Any]:
        return np.dtype("<u2") if self.vocab_size <= 65536 else np.dtype("<u4")

    @property
    def logprob_dtype(self) -> np.dtype[Any]:
        return get_codec(self.dtype).parts(())[""][0]

    def encode(self, logits: TruncatedLogits) -> dict[str, NDArray[Any]]:
        """Arrays `entry_counts` [N], `tail_logmass` [N], `entry_ids` [E], `entry_logprobs` [E].

        Raises:
            RecordError: an id outside the vocabulary, or more entries at a position than top-k plus label.
        """
        counts = np.diff(logits.offsets)
        if logits.ids.size and int(logits.ids.max()) >= self.vocab_size:
            raise RecordError(f"logits hold id {int(logits.ids.max())}, expected below vocab_size {self.vocab_size}")
        if counts.size and (counts.max() > self.top_k + 1 or counts.min() < 1):
            raise RecordError(
                f"logits keep {counts.min()}..{counts.max()} entries per position, expected 1..{self.top_k + 1} "
                f"(top_k {self.top_k} and the label)"
            )
        return {
            "entry_counts": counts.astype("<u4"),
            "tail_logmass": logits.tail_logmass.astype("<f4", copy=False),
            "entry_ids": logits.ids.astype(self.id_dtype, copy=False),
            "entry_logprobs": get_codec(self.dtype).encode(logits.logprobs)[""],
        }

    def decode(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Fields of a `TruncatedLogits`; the caller decides whether to check them again."""
        counts = arrays["entry_counts"]
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return {
            "ids": arrays["entry_ids"],
            "logprobs": arrays["entry_logprobs"],
            "offsets": offsets,
            "tail_logmass": arrays["tail_logmass"],
        }
