"""The teacher's distribution cut down to its likeliest tokens, with the exact mass of what was cut.

The tail's mass comes from the full log-sum-exp in float32 (float64 for the difference), never from rounded entries:
a truncated teacher is only a distribution together with its tail.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from teacher_dump.exact_mass import cumulative_mass, integer_mass


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
    likeliest_NK = _likeliest(logprobs_NV, top_k)
    counts_N = torch.full_like(labels_N, likeliest_NK.shape[1])
    return _keep(logprobs_NV, labels_N, likeliest_NK, counts_N)


def keep_nucleus(logits_NV: Tensor, labels_N: Tensor, *, p: float, min_entries: int, max_entries: int) -> KeptEntries:
    """Per position the fewest likeliest tokens whose mass is at least `p`, and the label's token.

    Few where the teacher is sure, many where it is not (the nucleus of Holtzman et al. 2020, but nothing is
    renormalised).

    Args:
        logits_NV, labels_N: as for `keep_top_k`.
        p: share of the mass.
        min_entries, max_entries: bounds of the number of tokens, the label's not counted.
    """
    logprobs_NV = logits_NV.float().log_softmax(dim=-1)
    likeliest_NK = _likeliest(logprobs_NV, max_entries)
    mass_NV = integer_mass(logprobs_NV)
    covered_NK = cumulative_mass(mass_NV.gather(1, likeliest_NK))
    wanted_N = p * mass_NV.sum(dim=-1).double()
    counts_N = (covered_NK < wanted_N[:, None]).sum(dim=-1) + 1
    widest = likeliest_NK.shape[1]
    return _keep(logprobs_NV, labels_N, likeliest_NK, counts_N.clamp(min(min_entries, widest), widest))


def _likeliest(logprobs_NV: Tensor, count: int) -> Tensor:
    """Ids of the (at most) `count` likeliest tokens, best first, ties by id: int64 [N, K]."""
    ids_NK = logprobs_NV.topk(min(count, logprobs_NV.shape[1]), dim=-1).indices.sort(dim=-1).values
    order_NK = logprobs_NV.gather(1, ids_NK).argsort(dim=-1, descending=True, stable=True)
    return ids_NK.gather(1, order_NK)


def _keep(logprobs_NV: Tensor, labels_N: Tensor, likeliest_NK: Tensor, counts_N: Tensor) -> KeptEntries:
    """The first `counts_N` of the likeliest tokens; a label that is not among them is less likely and comes last."""
    ranks_K = torch.arange(likeliest_NK.shape[1], device=likeliest_NK.device)
    taken_NK = ranks_K < counts_N[:, None]
    label_is_new_N = ~(taken_NK & (likeliest_NK == labels_N[:, None])).any(dim=-1)
    ids_NK = torch.cat([likeliest_NK, labels_N[:, None]], dim=1)
    taken_NK = torch.cat([taken_NK, label_is_new_N[:, None]], dim=1)
    # What is not taken is marked in a column of its own, V, which is cut off.
    vocab_size = logprobs_NV.shape[1]
    is_kept_NV = torch.zeros(len(ids_NK), vocab_size + 1, dtype=torch.bool, device=ids_NK.device)
    is_kept_NV = is_kept_NV.scatter_(1, torch.where(taken_NK, ids_NK, vocab_size), True)[:, :vocab_size]
    tail_N = logprobs_NV.double().masked_fill(is_kept_NV, float("-inf")).logsumexp(dim=-1).float()
    kept_counts_N = taken_NK.sum(dim=-1).cpu().numpy()
    return KeptEntries(
        ids=ids_NK[taken_NK].cpu().numpy(),
        logprobs=logprobs_NV.gather(1, ids_NK)[taken_NK].cpu().numpy(),
        offsets=np.concatenate([[0], np.cumsum(kept_counts_N)]).astype(np.int64),
        tail_logmass=tail_N.cpu().numpy(),
    )
