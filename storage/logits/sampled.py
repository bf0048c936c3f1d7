"""`sampled`: tokens drawn from the teacher, for an unbiased estimate of the forward KL at a few bytes per position.

Stored per supervised position: the number of distinct ids (uint32) and the teacher's entropy (float32, nats); per
distinct id: the id (uint16 while the vocabulary fits, else uint32) and how often it was drawn (uint8 up to 255 draws
per position, else uint16).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from alignkd.storage.codecs.base import Parts, ReadRows, Shape
from alignkd.storage.errors import RecordError
from alignkd.storage.logits.csr import COUNTS_DTYPE, ENTRY_COUNTS, ENTRY_IDS, check_ids, id_dtype, offsets_of
from alignkd.storage.record.distributions import ENTROPY_TOLERANCE, SampledLogits

DRAWS = "entry_draws"
ENTROPY = "entropy"


@dataclass(frozen=True)
class SampledLogitsCodec:
    """Codec of `SampledLogits`; lossless.

    With c_i draws of token i, sum(c_i / num_draws * f_i) is an unbiased estimate of the teacher's expectation of
    f; with f = log-prob of the student and the stored entropy H, of the forward KL = -H - E[f].
    """

    vocab_size: int
    num_draws: int
    value_type = SampledLogits

    @property
    def draws_dtype(self) -> np.dtype[Any]:
        return np.dtype("u1") if self.num_draws <= 255 else np.dtype("<u2")

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        return [
            (ENTRY_COUNTS, "supervised", COUNTS_DTYPE, ()),
            (ENTROPY, "supervised", np.dtype("<f4"), ()),
            (ENTRY_IDS, "entry", id_dtype(self.vocab_size), ()),
            (DRAWS, "entry", self.draws_dtype, ()),
        ]

    def encode(self, logits: SampledLogits) -> Parts:
        """Raises:
        RecordError: an id outside the vocabulary, another number of draws, an entropy above log V.
        """
        check_ids(logits.ids, self.vocab_size)
        draws = logits.draws_per_position()
        if draws.size and int(draws[0]) != self.num_draws:
            raise RecordError(f"logits have {draws[0]} draws per position, num_draws is {self.num_draws}")
        largest = float(np.log(self.vocab_size)) + ENTROPY_TOLERANCE
        if logits.entropy.size and logits.entropy.max() > largest:
            raise RecordError(f"entropy is {logits.entropy.max():.6g} nats, expected at most {largest:.6g} (log V)")
        return {
            ENTRY_COUNTS: np.diff(logits.offsets).astype(COUNTS_DTYPE),
            ENTROPY: logits.entropy.astype("<f4", copy=False),
            ENTRY_IDS: logits.ids.astype(id_dtype(self.vocab_size), copy=False),
            DRAWS: logits.counts.astype(self.draws_dtype, copy=False),
        }

    def decode(self, read: ReadRows) -> SampledLogits:
        return SampledLogits.trusted(
            {
                "ids": read(ENTRY_IDS),
                "counts": read(DRAWS),
                "offsets": offsets_of(read(ENTRY_COUNTS)),
                "entropy": read(ENTROPY),
            }
        )

    def describe(self) -> dict[str, Any]:
        return {
            "codec_id": "sampled",
            "values": "distinct ids drawn from the teacher at temperature 1, draws of each, entropy in nats",
            "num_draws": self.num_draws,
            "error_bound": "0",
        }
