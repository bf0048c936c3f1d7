"""The teacher's next-token distribution in the store's form, a few hundred positions at a time.

The logits of a whole batch are never in memory: the kept part is selected on the teacher's device, and only that is
copied. `keep_distribution` does not synchronise with the device; ragged arrays are made on the host, in
`stored_logits`. The log-probability of the labels is computed from the same logits before anything is cut or rounded.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import RecordError
from alignkd.storage.record.record import HiddenStates, Logits, Target
from alignkd.teacher_dump.targets.device_codecs import EXTREMES, StoredParts, encode, extremes
from alignkd.teacher_dump.targets.logits.drawing import draw_tokens, sampled_logits, uniforms
from alignkd.teacher_dump.targets.logits.truncation import NOT_FINITE, keep_nucleus, keep_top_k, truncated_logits

POSITIONS_AT_ONCE = 512
# float32 [N], log-probability of the label among all tokens
OF_LABELS = "of_labels"

Rows = dict[str, Tensor]


@torch.no_grad()
def keep_distribution(
    head: Callable[[Tensor], Tensor],
    hidden_ND: Tensor,
    labels_N: Tensor,
    uniforms_ND: Tensor | None,
    codec: LogitsCodec,
    *,
    num_tokens: int | None = None,
    label_logprobs: bool = False,
) -> Rows:
    """The part of the distribution at N positions that `codec` keeps: tensors with one row per position.

    Args:
        head: the teacher's head, [n, D] -> [n, V].
        hidden_ND: last hidden states after the final norm, on the teacher's device.
        labels_N: int64, the next token at each position, on the same device.
        uniforms_ND: numbers in [0, 1) for `sampled`, on the same device.
        num_tokens: columns of real tokens, the first ones; kinds that keep a part of the distribution are taken over
            these. None: all columns.
        label_logprobs: also give `OF_LABELS`, over the same columns for every kind.
    """
    states = _encoded_rows(hidden_ND, codec) if codec.kind == "hidden" else {}
    if codec.kind in ("hidden", "none") and not label_logprobs:
        return states
    starts = range(0, max(len(hidden_ND), 1), POSITIONS_AT_ONCE)
    kept = []
    for rows in (slice(start, start + POSITIONS_AT_ONCE) for start in starts):
        logits_NV, labels = head(hidden_ND[rows]), labels_N[rows]
        found = _keep(logits_NV, labels, None if uniforms_ND is None else uniforms_ND[rows], codec, num_tokens)
        if label_logprobs:
            found[OF_LABELS] = _logprobs_of(logits_NV[:, :num_tokens], labels)
        kept.append(found)
    return states | {name: torch.cat([rows[name] for rows in kept]) for name in kept[0]}


def sequence_logprob(rows: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    """The sum of `OF_LABELS` over a sample's rows, float32 [1], added in float64; None if the column is absent.

    Raises:
        RecordError: the teacher's output is NaN or infinite.
    """
    if OF_LABELS not in rows:
        return None
    values = rows[OF_LABELS].astype(np.float64)
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise RecordError(
            f"log-probabilities of labels at {bad} of {len(values)} supervised positions are NaN or infinite, "
            "expected none"
        )
    return np.array([values.sum()], np.float32)


def draws_of(codec: LogitsCodec, seed: int, samples: list[tuple[int, int]]) -> NDArray[np.float64] | None:
    """The random numbers [N, draws] of samples given as (index in the data set, positions); None if not needed."""
    if codec.kind != "sampled":
        return None
    assert codec.num_draws is not None
    numbers = [uniforms(seed, index, positions, codec.num_draws) for index, positions in samples]
    return np.concatenate([np.empty((0, codec.num_draws)), *numbers])


def stored_logits(rows: Mapping[str, NDArray[Any]], codec: LogitsCodec) -> Logits | None:
    """A record's logits from a sample's rows of the result of `keep_distribution`.

    Raises:
        RecordError: the teacher's output is NaN or infinite.
    """
    if codec.kind == "none":
        return None
    if codec.kind == "hidden":
        return HiddenStates(states=_decoded_rows(rows, codec, "hidden states"))
    if codec.kind == "full":
        logits = _decoded_rows(rows, codec, "logits")
        assert isinstance(logits, np.ndarray)  # float32 or float16
        return logits
    if bad := int(rows[NOT_FINITE].sum()):
        size = len(rows[NOT_FINITE])
        raise RecordError(f"logits at {bad} of {size} supervised positions are NaN or infinite, expected none")
    return sampled_logits(rows) if codec.kind == "sampled" else truncated_logits(rows)


def _logprobs_of(logits_NV: Tensor, labels_N: Tensor) -> Tensor:
    logits_NV = logits_NV.float()
    return logits_NV.gather(1, labels_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)


def _encoded_rows(values_NX: Tensor, codec: LogitsCodec) -> Rows:
    """Stored parts with the extremes of each position, so that one sample's NaN does not affect others."""
    assert codec.dtype is not None
    return {**encode(codec.dtype, values_NX), EXTREMES: extremes(values_NX.float(), dim=-1)}


def _decoded_rows(rows: Mapping[str, NDArray[Any]], codec: LogitsCodec, field: str) -> Target:
    assert codec.dtype is not None
    smallest, largest = rows[EXTREMES].min(initial=0), rows[EXTREMES].max(initial=0)
    parts = {name: values for name, values in rows.items() if name != OF_LABELS}
    parts[EXTREMES] = np.array([smallest, largest], np.float32)
    return StoredParts(codec=codec.dtype, parts=parts).target(field)


def _keep(
    logits_NV: Tensor, labels_N: Tensor, uniforms_ND: Tensor | None, codec: LogitsCodec, num_tokens: int | None
) -> Rows:
    if codec.kind in ("hidden", "none"):
        return {}
    if codec.kind == "full":
        return _encoded_rows(logits_NV, codec)
    logits_NV = logits_NV[:, :num_tokens].contiguous()  # a copy only where columns are left out
    if codec.kind == "topk":
        assert codec.top_k is not None
        return keep_top_k(logits_NV, labels_N, codec.top_k)
    if codec.kind == "nucleus":
        assert codec.p is not None and codec.min_entries is not None and codec.max_entries is not None
        bounds = {"min_entries": codec.min_entries, "max_entries": codec.max_entries}
        return keep_nucleus(logits_NV, labels_N, p=codec.p, **bounds)
    assert uniforms_ND is not None
    is_finite_N = extremes(logits_NV, dim=-1).isfinite().all(dim=-1)
    return {NOT_FINITE: ~is_finite_N, **draw_tokens(logits_NV, uniforms_ND)}
