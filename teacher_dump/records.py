"""From the teacher's outputs to the record that the store keeps."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from storage.codec_settings import FROM_ALL
from storage.record import FloatArray, Logits, Record
from teacher_dump.capture import Targets
from teacher_dump.store_config import StoreConfig
from vlm.conversations import Sample
from vlm.examples import Example


def make_record(
    sample: Sample,
    example: Example,
    targets: Targets,
    logits: Logits | None,
    config: StoreConfig,
    *,
    key: str,
    image_sha256: str | None,
    image_bytes: bytes | None,
) -> Record:
    """The record of one sample, holding the targets that `config` keeps, in floats: the store encodes them.

    Raises:
        RecordError: a target is not finite.
    """
    focus, embeddings = targets.focus_index, targets.vision_embeddings_PD
    keep_top = config.vision_top != "none" and focus is not None
    top = embeddings[focus] if embeddings is not None and keep_top and config.vision_top != FROM_ALL else None
    return Record(
        key=key,
        id=sample.id,
        index=sample.index,
        conversations=sample.conversations(),
        image=sample.image,
        image_sha256=image_sha256,
        image_bytes=image_bytes if config.inputs == "embed" else None,
        input_ids=example.input_ids,
        labels=example.labels,
        vision_positions=example.positions.vision_positions,
        tqv_query_positions=example.positions.tqv_query_positions,
        supervised_positions=example.positions.supervised_positions,
        attention=_token_major(targets.attention_HRC) if config.attention != "none" else None,
        vision_top_index=_indices(focus) if keep_top else None,
        vision_top_embeddings=_floats(top),
        vision_embeddings=_floats(embeddings) if config.vision_all != "none" else None,
        logits=logits,
    )


def _token_major(attention_HRC: Tensor | None) -> FloatArray | None:
    """[Ht, R, C] -> [R, Ht, C]: the rows of one token lie together."""
    return None if attention_HRC is None else _floats(attention_HRC.transpose(0, 1))


def _floats(tensor: Tensor | None) -> NDArray[np.float32] | None:
    return None if tensor is None else np.ascontiguousarray(tensor.float().numpy())


def _indices(index: Tensor | None) -> NDArray[np.uint16] | None:
    return None if index is None else index.numpy().astype(np.uint16)
