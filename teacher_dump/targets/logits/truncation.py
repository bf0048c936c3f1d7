"""The teacher's distribution truncated to its most probable tokens, with the exact mass of the tail.

The tail's mass is summed in float32 over the dropped tokens, not derived from rounded entries: only with its tail is a
truncated distribution a distribution.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.record.distributions import TruncatedLogits
from alignkd.teacher_dump.targets.logits.exact_mass import ONE, cumulative_mass, integer_mass
from alignkd.teacher_dump.targets.logits.most_likely import MostLikely, most_likely_tokens
from alignkd.teacher_dump.targets.logits.most_likely_host import Enough

# Columns of a dense table of entries: int32 [N, K] and float [N, K] by descending log-probability, int32 [N] number of
# kept entries, float [N] log-probability of the label, NaN if the label is among them, float32 [N].
IDS, LOGPROBS, COUNTS, LABEL_LOGPROB, TAIL = "ids", "logprobs", "counts", "label_logprob", "tail_logmass"
LABELS = "labels"
# bool [N]: whether a logit at the position is NaN or infinite
NOT_FINITE = "not_finite"
LARGEST_UINT16 = 2**16 - 1


def keep_top_k(logits_NV: Tensor, labels_N: Tensor, top_k: int) -> dict[str, Tensor]:
    """The `top_k` most probable tokens of each position and the label's token, as a dense table on the device.

    Args:
        logits_NV: unnormalised, any float dtype.
        labels_N: int64, the next token of each position.
        top_k: K; K >= V keeps everything.
    """
    most_likely = most_likely_tokens(logits_NV, labels_N, top_k)
    return _table(most_likely, labels_N, torch.full_like(labels_N, most_likely.ids_NK.shape[1]))


def keep_nucleus(
    logits_NV: Tensor, labels_N: Tensor, *, p: float, min_entries: int, max_entries: int
) -> dict[str, Tensor]:
    """Per position the fewest most probable tokens whose mass is at least `p`, and the label's token.

    The number is small where the teacher is confident (the nucleus of Holtzman et al. 2020, without
    renormalisation).

    Args:
        logits_NV, labels_N: as for `keep_top_k`.
        p: minimum mass.
        min_entries, max_entries: bounds of the number of tokens without the label.
    """
    most_likely = most_likely_tokens(logits_NV, labels_N, max_entries, Enough(mass=p, entries=min_entries))
    covered_NK = cumulative_mass(integer_mass(most_likely.logprobs_NK))
    counts_N = (covered_NK < p * ONE).sum(dim=-1) + 1
    widest = covered_NK.shape[1]
    return _table(most_likely, labels_N, counts_N.clamp(min(min_entries, widest), widest))


def truncated_logits(table: Mapping[str, NDArray[Any]]) -> TruncatedLogits:
    """The record's form of (some rows of) a dense table; a label that is not among the entries comes last.

    Raises:
        RecordError: it is not a distribution.
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


def _table(most_likely: MostLikely, labels_N: Tensor, counts_N: Tensor) -> dict[str, Tensor]:
    """The first `counts_N` of the most probable tokens; a label that is not among them comes last."""
    ids_NK, logprobs_NK = most_likely.ids_NK, most_likely.logprobs_NK
    kept_NK = torch.arange(ids_NK.shape[1], device=ids_NK.device) < counts_N[:, None]
    is_label_NK = ids_NK == labels_N[:, None]
    label_is_kept_N = (kept_NK & is_label_NK).any(dim=-1)
    cut_NK = logprobs_NK.masked_fill(kept_NK | is_label_NK, float("-inf"))
    return {
        NOT_FINITE: ~most_likely.is_finite_N,
        IDS: ids_NK.to(torch.int32),
        LOGPROBS: logprobs_NK,
        COUNTS: counts_N.to(torch.int32),
        LABEL_LOGPROB: torch.where(label_is_kept_N, float("nan"), most_likely.label_logprob_N),
        LABELS: labels_N.to(torch.int32),
        TAIL: torch.logaddexp(most_likely.rest_logmass_N, cut_NK.logsumexp(dim=-1)),
    }
