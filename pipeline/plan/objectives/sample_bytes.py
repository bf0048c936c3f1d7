"""Bytes of the targets of one sample of the reference shape: MobileVLM V2 7B, one image."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from alignkd.pipeline.plan.disk.entries import ASSUMED_DISTINCT_DRAWS, ASSUMED_NUCLEUS
from alignkd.pipeline.plan.disk.samples import DataSize, SampleRows
from alignkd.pipeline.plan.disk.store import store_size
from alignkd.storage.codecs.settings import NONE
from alignkd.storage.tools.target_bytes import INPUTS
from alignkd.teacher_dump.fingerprint import manifest_of
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.families.mobilevlm.model.sizes import family_config

TEACHER = "MobileVLM_V2-7B"
# vision tokens, text queries, supervised positions; the vocabulary has 32,000 tokens, a hidden state 4,096 values
VISION_TOKENS, QUERIES, SUPERVISED = 144, 200, 100
# in one shard, so that what a file has once does not count
_SAMPLES = 64
_NOTHING: Mapping[str, Any] = {
    **dict.fromkeys(("attention", "vision_top", "vision_all"), NONE),
    "logits": {"kind": NONE},
}


def bytes_of(store: Mapping[str, Any], entries: float = ASSUMED_NUCLEUS) -> int:
    """Bytes of a sample's targets in a store with these keys, less those of a store without any.

    Args:
        entries: kept tokens of `topk`, `nucleus` and `sampled` logits at a position.
    """
    return round((_total({**_NOTHING, **store}, entries) - _total(_NOTHING, entries)) / _SAMPLES)


def bytes_of_logits() -> dict[str, int]:
    """Bytes of a sample's logits by kind, with the default settings of the kind."""
    kinds: dict[str, tuple[dict[str, Any], float]] = {
        "full": ({"kind": "full"}, 0.0),
        "hidden": ({"kind": "hidden"}, 0.0),
        "hidden, int8_group": ({"kind": "hidden", "dtype": "int8_group"}, 0.0),
        "topk of 64": ({"kind": "topk", "top_k": 64}, 64.0),
        "nucleus of 0.98": ({"kind": "nucleus"}, ASSUMED_NUCLEUS),
        "sampled, 64 draws": ({"kind": "sampled", "num_draws": 64}, 64 * ASSUMED_DISTINCT_DRAWS),
    }
    return {name: bytes_of({"logits": settings}, entries) for name, (settings, entries) in kinds.items()}


def _total(store: Mapping[str, Any], entries: float) -> int:
    manifest = manifest_of(
        TeacherConfig(checkpoint=TEACHER),
        StoreConfig.model_validate({"path": "store", **store}),
        family_config(TEACHER),
        checkpoint={},
        data={},
        attachments={},
        num_samples=_SAMPLES,
    )
    found = store_size(_samples(), manifest, entries_per_position=entries, attachments={}, overhead=False)
    return sum(size for target, size in found.by_target.items() if target != INPUTS)


@cache
def _samples() -> DataSize:
    """Equal samples, each with an image of its own."""
    zeros, ones = np.zeros(_SAMPLES, np.int64), np.ones(_SAMPLES, np.int64)
    rows = SampleRows(
        shard=zeros,
        text=zeros,
        id=zeros,
        tokens=ones * (QUERIES + 1),
        length=ones * (QUERIES + VISION_TOKENS),
        images=ones,
        vision=ones * VISION_TOKENS,
        queries=ones * QUERIES,
        supervised=ones * SUPERVISED,
        image=np.arange(1, _SAMPLES + 1),
        image_bytes=zeros,
        source=zeros,
    )
    return DataSize(num_samples=_SAMPLES, shard_sizes=(_SAMPLES,), rows=rows, unusable=0, unusable_bytes=0, exact=True)
