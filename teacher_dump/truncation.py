"""The teacher's distribution cut down to its likeliest tokens, with the exact mass of what was cut.

The tail's mass comes from the full log-sum-exp in float32 (float64 for the difference), never from rounded entries:
a truncated teacher is only a distribution together with its tail.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class KeptEntries:
    """Entries of N positions in CSR form.

    Attributes:
        ids: int64 [E], per position by falling log-probability.
        logprobs: float32 [E], normalised over the whole vocabulary.
        offsets: int64 [N + 1].
        tail_logmass: float32 [N], log of the mass outside the entries; -inf when nothing is outside.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[np.float32]
    offsets: NDArray[np.int64]
    tail_logmass: NDArray[np.float32]


def keep_top_k(logits_NV: Tensor, labels_N: Tensor, top_k: int) -> KeptEntries:
    """The `top_k` likeliest tokens of each position and the label's token.

    Args:
        logits_NV: unnormalised, any float dtype.
        labels_N: int64, the next token of each position.
        top_k: K; K >= V keeps everything.
    """
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    kept_NV = torch.zeros_like(logprobs_NV, dtype=torch.bool)
    kept_NV.scatter_(1, logprobs_NV.topk(min(top_k, logprobs_NV.shape[1]), dim=-1).indices, True)
    kept_NV.scatter_(1, labels_N[:, None], True)
    tail_N = logprobs_NV.double().masked_fill(kept_NV, float("-inf")).logsumexp(dim=-1).float()
    # Kept entries first, likeliest first: one stable sort, then the first `count` columns of each row.
    order_NV = logprobs_NV.masked_fill(~kept_NV, float("-inf")).argsort(dim=-1, descending=True, stable=True)
    counts_N = kept_NV.sum(dim=-1)
    taken_NV = torch.arange(order_NV.shape[1], device=order_NV.device) < counts_N[:, None]
    return KeptEntries(
        ids=order_NV[taken_NV].cpu().numpy(),
        logprobs=logprobs_NV.gather(1, order_NV)[taken_NV].cpu().numpy(),
        offsets=np.concatenate([[0], counts_N.cumsum(0).cpu().numpy()]).astype(np.int64),
        tail_logmass=tail_N.cpu().numpy(),
    )
