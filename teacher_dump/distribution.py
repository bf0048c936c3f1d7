"""The teacher's next-token distribution as the store keeps it, a few hundred positions at a time.

All logits of a batch are never held: what is kept of them is decided on the teacher's device, and only that leaves it.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.codec_settings import LogitsCodec
from storage.errors import RecordError
from storage.record import HiddenStates, Logits, SampledLogits, TruncatedLogits
from teacher_dump.drawing import draw_tokens, uniforms
from teacher_dump.truncation import KeptEntries, keep_nucleus, keep_top_k

POSITIONS_AT_ONCE = 512
LARGEST_UINT8, LARGEST_UINT16 = 2**8 - 1, 2**16 - 1


@torch.no_grad()
def stored_logits(
    lm_head: Callable[[Tensor], Tensor],
    hidden_ND: Tensor,
    labels_N: Tensor,
    codec: LogitsCodec,
    *,
    draw_key: tuple[int, int],
) -> Logits | None:
    """What `codec` keeps of the distribution at a sample's N supervised positions.

    Args:
        lm_head: the teacher's, [n, D] -> [n, V].
        hidden_ND: last hidden states after the final norm, on the teacher's device.
        labels_N: int64, the token that follows each position; same device.
        draw_key: (store.seed, the sample's index in the data set), of `sampled`.

    Raises:
        RecordError: the teacher gives NaN or infinity.
    """
    chunks = _logit_chunks(lm_head, hidden_ND)
    labels = labels_N.split(POSITIONS_AT_ONCE)
    match codec.kind:
        case "none":
            return None
        case "hidden":
            return HiddenStates(states=hidden_ND.float().cpu().numpy())
        case "full":
            return np.concatenate([chunk.float().cpu().numpy() for chunk in chunks])
        case "topk":
            assert codec.top_k is not None
            return _truncated(
                [keep_top_k(chunk, label, codec.top_k) for chunk, label in zip(chunks, labels, strict=True)]
            )
        case "nucleus":
            assert codec.p is not None and codec.min_entries is not None and codec.max_entries is not None
            bounds = {"min_entries": codec.min_entries, "max_entries": codec.max_entries}
            return _truncated(
                [keep_nucleus(chunk, label, p=codec.p, **bounds) for chunk, label in zip(chunks, labels, strict=True)]
            )
        case "sampled":
            assert codec.num_draws is not None
            return _sampled(chunks, uniforms(*draw_key, len(hidden_ND), codec.num_draws))


def _logit_chunks(lm_head: Callable[[Tensor], Tensor], hidden_ND: Tensor) -> Iterator[Tensor]:
    for hidden_nD in hidden_ND.split(POSITIONS_AT_ONCE):
        logits_nV = lm_head(hidden_nD)
        if not (finite_nV := logits_nV.isfinite()).all():
            bad = int((~finite_nV).sum())
            raise RecordError(f"logits has {bad} of {logits_nV.numel()} values that are NaN or infinite, expected none")
        yield logits_nV


def _truncated(chunks: Sequence[KeptEntries]) -> TruncatedLogits:
    return TruncatedLogits(
        ids=_smallest_ids(np.concatenate([chunk.ids for chunk in chunks])),
        logprobs=np.concatenate([chunk.logprobs for chunk in chunks]),
        offsets=_joined_offsets([chunk.offsets for chunk in chunks]),
        tail_logmass=np.concatenate([chunk.tail_logmass for chunk in chunks]),
    )


def _sampled(chunks: Iterator[Tensor], uniforms_ND: NDArray[np.float64]) -> SampledLogits:
    starts = range(0, max(len(uniforms_ND), 1), POSITIONS_AT_ONCE)
    drawn = [
        draw_tokens(chunk, uniforms_ND[start : start + POSITIONS_AT_ONCE])
        for chunk, start in zip(chunks, starts, strict=True)
    ]
    counts = np.concatenate([chunk.counts for chunk in drawn])
    return SampledLogits(
        ids=_smallest_ids(np.concatenate([chunk.ids for chunk in drawn])),
        counts=counts.astype(np.uint8) if uniforms_ND.shape[1] <= LARGEST_UINT8 else counts.astype(np.uint16),
        offsets=_joined_offsets([chunk.offsets for chunk in drawn]),
        entropy=np.concatenate([chunk.entropy for chunk in drawn]),
    )


def _smallest_ids(ids: NDArray[np.int64]) -> NDArray[np.uint16] | NDArray[np.uint32]:
    return ids.astype(np.uint16) if ids.max(initial=0) <= LARGEST_UINT16 else ids.astype(np.uint32)


def _joined_offsets(offsets: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    counts = np.concatenate([np.diff(part) for part in offsets])
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
