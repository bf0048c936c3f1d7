"""The teacher's distribution cut down to its likeliest tokens, with the exact mass of what was cut.

The tail's mass is summed in float32 over the tokens that are cut, never derived from rounded entries: a truncated
teacher is only a distribution together with its tail.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.distributions import TruncatedLogits
from teacher_dump.exact_mass import ONE, cumulative_mass, integer_mass
from teacher_dump.likeliest import likeliest_tokens

# Of a dense table of entries, by name: int32 [N, K] and float [N, K] by falling log-probability, int32 [N] how many
# of them are kept, float [N] the label's log-probability, NaN where the label is among them, float32 [N].
IDS, LOGPROBS, COUNTS, LABEL_LOGPROB, TAIL = "ids", "logprobs", "counts", "label_logprob", "tail_logmass"
LABELS = "labels"
LARGEST_UINT16 = 2**16 - 1
# below it, probabilities too small for float32 may be a part of a tail's mass that matters
FAINT = 1e-25


def keep_top_k(logits_NV: Tensor, labels_N: Tensor, top_k: int) -> dict[str, Tensor]:
    """The `top_k` likeliest tokens of each position and the label's token, as a dense table on the device.

    Args:
        logits_NV: unnormalised, any float dtype; finite.
        labels_N: int64, the next token of each position.
        top_k: K; K >= V keeps everything.
    """
    distribution = _Distribution(logits_NV, top_k)
    return _keep(distribution, labels_N, torch.full_like(labels_N, distribution.likeliest_NK.shape[1]))


def keep_nucleus(
    logits_NV: Tensor, labels_N: Tensor, *, p: float, min_entries: int, max_entries: int
) -> dict[str, Tensor]:
    """Per position the fewest likeliest tokens whose mass is at least `p`, and the label's token.

    Few where the teacher is sure, many where it is not (the nucleus of Holtzman et al. 2020, but nothing is
    renormalised).

    Args:
        logits_NV, labels_N: as for `keep_top_k`.
        p: share of the mass.
        min_entries, max_entries: bounds of the number of tokens, the label's not counted.
    """
    distribution = _Distribution(logits_NV, max_entries)
    covered_NK = cumulative_mass(integer_mass(distribution.logprobs(distribution.likeliest_NK)))
    counts_N = (covered_NK < p * ONE).sum(dim=-1) + 1
    widest = covered_NK.shape[1]
    return _keep(distribution, labels_N, counts_N.clamp(min(min_entries, widest), widest))


def truncated_logits(table: Mapping[str, NDArray[Any]]) -> TruncatedLogits:
    """The record's form of a dense table, or of some rows of it; a label that is not among the entries comes last.

    Raises:
        RecordError: it is no distribution.
    """
    is_new_N = ~np.isnan(table[LABEL_LOGPROB])
    kept_NK = np.arange(table[IDS].shape[1]) < table[COUNTS][:, None]
    kept_NK = np.concatenate([kept_NK, is_new_N[:, None]], axis=1)
    ids = np.concatenate([table[IDS], table[LABELS][:, None]], axis=1)[kept_NK]
    logprobs = np.concatenate([table[LOGPROBS], table[LABEL_LOGPROB][:, None]], axis=1)[kept_NK]
    return TruncatedLogits(
        ids=smallest_ids(ids),
        logprobs=logprobs,
        offsets=np.concatenate([[0], np.cumsum(table[COUNTS] + is_new_N)]).astype(np.int64),
        tail_logmass=table[TAIL],
    )


def smallest_ids(ids: NDArray[np.integer[Any]]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Token ids in 16 bits if they fit."""
    return ids.astype(np.uint16) if ids.max(initial=0) <= LARGEST_UINT16 else ids.astype(np.uint32)


class _Distribution:
    """The teacher's at N positions.

    No table of log-probabilities is made: they are needed of few tokens, and each pass over [N, V] costs.

    Attributes:
        likeliest_NK: ids of the K likeliest tokens, see `likeliest_tokens`.
    """

    def __init__(self, logits_NV: Tensor, count: int) -> None:
        self._logits_NV = logits_NV.float()
        self._probs_NV = self._logits_NV.softmax(dim=-1)
        self.likeliest_NK = likeliest_tokens(self._logits_NV, count)
        best_N1 = self.likeliest_NK[:, :1]
        self._best_N1 = self._logits_NV.gather(1, best_N1)
        self._best_logprob_N1 = self._probs_NV.gather(1, best_N1).log()

    def logprobs(self, ids_NK: Tensor) -> Tensor:
        """Natural log of the probabilities of some tokens: float32 [N, K]."""
        return self._logits_NV.gather(1, ids_NK) - self._best_N1 + self._best_logprob_N1

    def tail_logmass(self, cut_NK: Tensor) -> Tensor:
        """Natural log of the mass of all tokens but `cut_NK`: float32 [N]. The distribution is used up."""
        if self._logits_NV.device.type != "cpu":
            return self._faint_logmass(slice(None), cut_NK)
        mass_N = self._probs_NV.scatter_(1, cut_NK, 0).sum(dim=-1)
        logmass_N = mass_N.log()
        # which of them are is a question that a GPU would be waited for
        if len(faint := (mass_N < FAINT).nonzero()[:, 0]):
            logmass_N[faint] = self._faint_logmass(faint, cut_NK[faint])
        return logmass_N

    def _faint_logmass(self, rows: slice | Tensor, cut_NK: Tensor) -> Tensor:
        """The same of a mass that may be too small for float32, at the cost of more passes."""
        shifted_NV = self._logits_NV[rows] - self._best_N1[rows]
        rest_N = shifted_NV.scatter_(1, cut_NK, float("-inf")).logsumexp(dim=-1)
        return rest_N + self._best_logprob_N1[rows, 0]


def _keep(distribution: _Distribution, labels_N: Tensor, counts_N: Tensor) -> dict[str, Tensor]:
    """The first `counts_N` of the likeliest tokens; a label that is not among them is less likely and comes last.

    The distribution is used up.
    """
    likeliest_NK = distribution.likeliest_NK
    kept_NK = torch.arange(likeliest_NK.shape[1], device=likeliest_NK.device) < counts_N[:, None]
    label_is_kept_N = (kept_NK & (likeliest_NK == labels_N[:, None])).any(dim=-1)
    label_logprob_N = distribution.logprobs(labels_N[:, None])[:, 0]
    logprobs_NK = distribution.logprobs(likeliest_NK)
    # every row cuts as many ids out of the tail; where it keeps fewer, its first one again
    cut_NK = torch.where(kept_NK, likeliest_NK, likeliest_NK[:, :1])
    return {
        IDS: likeliest_NK.to(torch.int32),
        LOGPROBS: logprobs_NK,
        COUNTS: counts_N.to(torch.int32),
        LABEL_LOGPROB: torch.where(label_is_kept_N, float("nan"), label_logprob_N),
        LABELS: labels_N.to(torch.int32),
        TAIL: distribution.tail_logmass(torch.cat([cut_NK, labels_N[:, None]], dim=1)),
    }
