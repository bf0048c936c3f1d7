"""The teacher's truncated distribution as padded tensors: kept entries and one tail bucket of known mass."""

from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SparseDistribution:
    """Kept entries at N positions, padded to the widest of them.

    Attributes:
        ids_NK: int64 token ids, 0 where padded.
        logprobs_NK: float32, natural log, normalised over the whole vocabulary; 0 where padded. They are used as
            stored: entries rounded to float16 are not renormalised, so a row may sum to 1 only within 1e-3.
        kept_NK: bool, False where padded.
        tail_logmass_N: float32, log of the mass of all tokens not kept; -inf when every token is.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    kept_NK: Tensor
    tail_logmass_N: Tensor

    @classmethod
    def from_ragged(
        cls,
        ids: NDArray[np.integer],
        logprobs: NDArray[np.floating],
        offsets: NDArray[np.integer],
        tail_logmass: NDArray[np.floating],
    ) -> Self:
        """From entries [E] of which position n owns `offsets[n]:offsets[n + 1]`."""
        num_kept_N = np.diff(offsets)
        kept_NK = np.arange(max(num_kept_N, default=0)) < num_kept_N[:, None]
        ids_NK = np.zeros(kept_NK.shape, np.int64)
        logprobs_NK = np.zeros(kept_NK.shape, np.float32)
        ids_NK[kept_NK], logprobs_NK[kept_NK] = ids, logprobs
        return cls(
            ids_NK=torch.from_numpy(ids_NK),
            logprobs_NK=torch.from_numpy(logprobs_NK),
            kept_NK=torch.from_numpy(kept_NK),
            tail_logmass_N=torch.from_numpy(np.array(tail_logmass, np.float32)),
        )

    def to(self, device: torch.device | str) -> Self:
        """The distribution with every tensor on `device`."""
        return replace(self, **{field.name: getattr(self, field.name).to(device) for field in fields(self)})
