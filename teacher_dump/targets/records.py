"""From the teacher's outputs to the record that the store keeps."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs.settings import FROM_ALL
from alignkd.storage.record.record import Logits, Record, Target
from alignkd.storage.schema.targets.sequence import SEQUENCE_LOGPROB
from alignkd.teacher_dump.preparation import Prepared
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.attention import VISION_TOP_INDEX
from alignkd.teacher_dump.targets.capture import Captured
from alignkd.teacher_dump.targets.device_codecs import StoredParts, joined
from alignkd.teacher_dump.targets.logits.distribution import sequence_logprob, stored_logits


def make_record(prepared: Prepared, captured: Captured, config: StoreConfig) -> Record:
    """The record of one sample, with targets encoded by the codecs of `config`; waits for the copies to the host.

    Raises:
        RecordError: a target is not finite, or its codec cannot represent it.
    """
    parts = None if captured.vision_top is None else captured.vision_top.wait()
    index = None if parts is None else parts.pop(VISION_TOP_INDEX).astype(np.uint16)
    top = StoredParts(codec=config.vision_top, parts=parts) if parts and config.vision_top != FROM_ALL else None
    rows = {name: values[captured.logits.rows] for name, values in captured.logits.arrays.wait().items()}
    return prepared.record(
        embeds=config.inputs == "embed",
        attention=_attention(captured, config),
        vision_top_index=index,
        vision_top_embeddings=None if top is None else top.target("vision_top_embeddings"),
        vision_embeddings=_vision(captured, config),
        logits=stored_logits(rows, config.logits),
        more=_more(captured, config) | _of_sequence(rows),
    )


def _attention(captured: Captured, config: StoreConfig) -> Target | None:
    if captured.attention is None:
        return None
    return StoredParts(codec=config.first_layer_codec, parts=captured.attention.wait()).target("attention")


def _more(captured: Captured, config: StoreConfig) -> dict[str, Target | Logits]:
    """The further targets by their names."""
    compared = {} if captured.counterfactual is None else captured.counterfactual.targets()
    states = {rows.name: rows.target() for rows in captured.states}
    return {**_attention_layers(captured, config), **states, **compared}


def _of_sequence(rows: Mapping[str, NDArray[Any]]) -> dict[str, Target | Logits]:
    found = sequence_logprob(rows)
    return {} if found is None else {SEQUENCE_LOGPROB: found}


def _attention_layers(captured: Captured, config: StoreConfig) -> dict[str, Target]:
    """Name of a further target -> [R, layers * G, C]."""
    codec = config.codec_of("attention")
    return {
        name: joined([StoredParts(codec=codec, parts=layer.wait()) for layer in layers]).target(name)
        for name, layers in captured.attention_layers.items()
    }


def _vision(captured: Captured, config: StoreConfig) -> tuple[Target, ...] | None:
    """[P, Dt] of each image; None without images, and where they are not stored."""
    found = tuple(
        StoredParts(codec=config.vision_all, parts=image.wait()).target("vision_embeddings")
        for image in captured.vision
    )
    return found or None
