"""The teacher's truncated distribution as padded tensors: kept entries and one tail bucket of perhaps unknown mass."""

from dataclasses import dataclass
from typing import Self

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class TruncatedDistribution:
    """Kept entries at N positions, padded to the largest number of entries of a position.

    Attributes:
        ids_NK: int64 token ids, 0 where padded.
        logprobs_NK: float32, natural log, normalised over the whole vocabulary, or over the entries where the tail is
            unknown; 0 where padded. They are used as stored: entries rounded to float16 are not renormalised, so the
            sum of a row may differ from 1 by 1e-3.
        kept_NK: bool, False where padded.
        tail_logmass_N: float32, log of the mass of all tokens not kept; -inf when every token is; None if unknown.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    kept_NK: Tensor
    tail_logmass_N: Tensor | None

    def __getitem__(self, positions: slice) -> Self:
        """The entries of some of the positions, without a copy."""
        return type(self)(
            ids_NK=self.ids_NK[positions],
            logprobs_NK=self.logprobs_NK[positions],
            kept_NK=self.kept_NK[positions],
            tail_logmass_N=None if self.tail_logmass_N is None else self.tail_logmass_N[positions],
        )
