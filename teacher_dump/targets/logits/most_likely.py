"""The most probable tokens of each position and the mass of all others, which truncation needs.

The order depends only on the logits: best first, ties by id. The CPU implementation makes a few passes over rows that
stay in the cache (`most_likely_host.py`). The GPU implementation here does not synchronise.

Shapes: N positions, V vocabulary, K tokens kept.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from alignkd.teacher_dump.targets.device_codecs import extremes
from alignkd.teacher_dump.targets.logits.most_likely_host import ID_BITS, ID_MASK, Enough, in_order, select

# bytes of float32 logits processed at a time, so that they stay in the cache
CACHED_BYTES = 4 << 20
# below this, probabilities too small for float32 may be a relevant part of the mass
FAINT = 1e-25


@dataclass(frozen=True, kw_only=True)
class MostLikely:
    """The most probable tokens of N positions, on the device of their logits.

    Log-probabilities are natural logs over the whole vocabulary.

    Attributes:
        ids_NK: int64, best first, ties by id.
        logprobs_NK: float32 log-probabilities; -inf where a row has fewer entries, because they were `Enough`.
        label_logprob_N: float32 log-probability of the next token.
        rest_logmass_N: float32, log of the mass of all other tokens, the label not among them; -inf without any.
        is_finite_N: bool, whether all logits are finite; if not, the other fields are meaningless.
    """

    ids_NK: Tensor
    logprobs_NK: Tensor
    label_logprob_N: Tensor
    rest_logmass_N: Tensor
    is_finite_N: Tensor


def most_likely_tokens(logits_NV: Tensor, labels_N: Tensor, count: int, enough: Enough | None = None) -> MostLikely:
    """The (at most) `count` most probable tokens.

    Args:
        logits_NV: unnormalised, any float dtype.
        labels_N: int64, the next token of each position.
        count: K, at least 1.
        enough: when fewer entries suffice; on a GPU every row has `count`.
    """
    count = min(count, logits_NV.shape[1])
    if logits_NV.device.type != "cpu":
        return _on_device(logits_NV.float(), labels_N, count)
    size = max(1, CACHED_BYTES // (4 * logits_NV.shape[1]))
    parts = [
        _on_host(logits_nV.float(), labels_n, count, enough)
        for logits_nV, labels_n in zip(logits_NV.split(size), labels_N.split(size), strict=True)
    ]
    return MostLikely(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def _on_host(logits_NV: Tensor, labels_N: Tensor, count: int, enough: Enough | None) -> dict[str, Tensor]:
    """Fields of `MostLikely` for a few positions."""
    smallest_N, probs_NV = logits_NV.amin(dim=-1), logits_NV.softmax(dim=-1)
    ids_NK, logits_NK = map(torch.from_numpy, select(logits_NV.numpy(), probs_NV.numpy(), count, enough))
    best_logit_N1, best_N1 = logits_NK[:, :1].clone(), probs_NV.gather(1, ids_NK[:, :1])
    best_logprob_N1 = best_N1.log()
    rest_N = probs_NV.scatter_(1, ids_NK, 0).scatter_(1, labels_N[:, None], 0).sum(dim=-1)
    rest_logmass_N = rest_N.log()
    if len(faint := (rest_N < FAINT).nonzero()[:, 0]):
        others_nV = _without(logits_NV[faint] - best_logit_N1[faint], ids_NK[faint], labels_N[faint])
        rest_logmass_N[faint] = others_nV.logsumexp(dim=-1) + best_logprob_N1[faint, 0]
    label_logit_N1 = logits_NV.gather(1, labels_N[:, None])
    return {
        "ids_NK": ids_NK,
        "logprobs_NK": logits_NK.sub_(best_logit_N1).add_(best_logprob_N1),
        "label_logprob_N": (label_logit_N1 - best_logit_N1 + best_logprob_N1)[:, 0],
        "rest_logmass_N": rest_logmass_N,
        "is_finite_N": best_N1[:, 0].isfinite() & smallest_N.isfinite(),
    }


def _on_device(logits_NV: Tensor, labels_N: Tensor, count: int) -> MostLikely:
    """Which of several equal tokens are kept at the cut is decided by torch's `topk`."""
    found = logits_NV.topk(count, dim=-1, sorted=False)
    bits_NK = (found.values + 0.0).view(torch.int32)
    ids_NK = (~in_order(bits_NK).to(torch.int64) << ID_BITS | found.indices).sort(dim=-1).values & ID_MASK
    logprobs_NV = logits_NV.log_softmax(dim=-1)
    return MostLikely(
        ids_NK=ids_NK,
        logprobs_NK=logprobs_NV.gather(1, ids_NK),
        label_logprob_N=logprobs_NV.gather(1, labels_N[:, None])[:, 0],
        rest_logmass_N=_without(logprobs_NV, ids_NK, labels_N).logsumexp(dim=-1),
        is_finite_N=extremes(logits_NV, dim=-1).isfinite().all(dim=-1),
    )


def _without(logprobs_NV: Tensor, ids_NK: Tensor, labels_N: Tensor) -> Tensor:
    """The table with -inf for these tokens, changed in place."""
    return logprobs_NV.scatter_(1, ids_NK, float("-inf")).scatter_(1, labels_N[:, None], float("-inf"))
