"""From the teacher's outputs to the record that the store keeps."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from storage.record import FloatArray, Record, TruncatedLogits
from teacher_dump.capture import Targets
from teacher_dump.config import LogitsConfig, StoreConfig
from teacher_dump.truncation import keep_top_k
from vlm.conversations import Sample
from vlm.examples import Example

LARGEST_UINT16 = 2**16


def make_record(
    sample: Sample, key: str, image_sha256: str | None, example: Example, targets: Targets, config: StoreConfig
) -> Record:
    """The record of one sample, holding the targets that `config` keeps.

    Raises:
        StoreError: a target is not finite.
    """
    focus = targets.focus_index
    embeddings = targets.vision_embeddings_PD
    keep_top = config.vision_top != "none" and focus is not None and embeddings is not None
    return Record(
        key=key,
        id=sample.id,
        index=sample.index,
        conversations=sample.conversations(),
        image=sample.image,
        image_sha256=image_sha256,
        input_ids=example.input_ids,
        labels=example.labels,
        vision_positions=example.positions.vision_positions,
        tqv_query_positions=example.positions.tqv_query_positions,
        supervised_positions=example.positions.supervised_positions,
        attention=_token_major(targets.attention_HRC) if config.attention != "none" else None,
        vision_top_index=_indices(focus) if keep_top else None,
        vision_top_embeddings=_floats(embeddings[focus]) if keep_top else None,  # type: ignore[index]
        vision_embeddings=_floats(embeddings) if config.vision_all != "none" else None,
        logits=_logits(targets, config.logits),
    )


def _token_major(attention_HRC: Tensor | None) -> FloatArray | None:
    """[Ht, R, C] -> [R, Ht, C]: the rows of one token lie together."""
    return None if attention_HRC is None else _floats(attention_HRC.transpose(0, 1))


def _floats(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else np.ascontiguousarray(tensor.float().numpy())


def _indices(index: Tensor | None) -> NDArray[np.uint16] | None:
    return None if index is None else index.numpy().astype(np.uint16)


def _logits(targets: Targets, config: LogitsConfig) -> FloatArray | TruncatedLogits | None:
    if config.kind == "none":
        return None
    top_k = config.kept_entries
    if top_k is None:
        return _floats(targets.logits_NV)
    kept = keep_top_k(targets.logits_NV, targets.next_labels_N, top_k)
    vocab_size = targets.logits_NV.shape[1]
    return TruncatedLogits(
        ids=kept.ids.astype(np.uint16) if vocab_size <= LARGEST_UINT16 else kept.ids.astype(np.uint32),
        logprobs=kept.logprobs,
        offsets=kept.offsets,
        tail_logmass=kept.tail_logmass,
    )
