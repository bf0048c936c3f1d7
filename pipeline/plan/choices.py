"""The same data by other codecs: what each choice of `store` would cost."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.samples import DataSize
from alignkd.pipeline.plan.store import store_size
from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import (
    FROM_ALL,
    LOGITS_DEFAULTS,
    NOT_STORED,
    PROFILES,
    STEM,
    Codecs,
    profile_codecs,
)
from alignkd.storage.schema.manifest import Manifest
from alignkd.teacher_dump.fingerprint import manifest_of
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, TOKENIZER_FILE

# Kept tokens per position where nobody has measured: of a nucleus of 0.98 what it keeps of a distribution of 1.2 nats;
# of draws the share that are different tokens.
ASSUMED_NUCLEUS = 18.0
ASSUMED_DISTINCT_DRAWS = 0.25
_SHA256 = hashlib.sha256(b"").hexdigest()
# logits that are compared; entries per position are those of the configuration's own kind, where that keeps entries
LOGITS: Mapping[str, Mapping[str, Any]] = {
    **{kind: {"kind": kind, **settings} for kind, settings in LOGITS_DEFAULTS.items()},
    "hidden int8": {"kind": "hidden", "dtype": "int8_group"},
}


def plan_manifest(config: RunConfig, teacher: VLMConfig, builder: ExampleBuilder | None, data: DataSize) -> Manifest:
    """The manifest that a dump would write, as far as its length goes: hashes of what is not read are made up."""
    assert config.teacher is not None
    known = {} if builder is None else builder.fingerprint
    probe = [] if builder is None else builder.tokenizer.probe_ids()
    attachments = attachments_of(dict.fromkeys((TOKENIZER_FILE, LM_HEAD_FILE, STEM_FILE), 0), config.store.codecs())
    return manifest_of(
        config.teacher,
        config.store,
        teacher,
        checkpoint={
            **known,
            "tokenizer_probe": json.dumps(probe),
            "weights": _SHA256,
            "vision_config": _SHA256,
        },
        data={"conversations": _SHA256, "max_tokens": str(config.data.max_tokens)},
        attachments=dict.fromkeys(attachments, _SHA256),
        num_samples=data.num_samples,
    )


def bytes_by_codec(data: DataSize, manifest: Manifest, entries_per_position: float) -> dict[str, dict[str, int]]:
    """Target -> codec -> bytes of that target over the whole store."""

    def sizes(target: str, **changed: Any) -> int:
        other = with_codecs(manifest, **changed)
        found = store_size(data, other, entries_per_position=entries_per_position, attachments={}, overhead=False)
        return found.by_target[target]

    attention = {name: sizes("attention", attention=name) for name in (*codec_names("attention"), STEM)}
    top = {name: sizes("vision_top", vision_top=name) for name in (*codec_names("vision_top"), STEM)}
    every = {name: sizes("vision_all", vision_all=name) for name in (*codec_names("vision_all"), STEM)}
    if manifest.codecs.vision_all not in NOT_STORED:
        top[FROM_ALL] = sizes("vision_top", vision_top=FROM_ALL)
    kept = {
        "topk": LOGITS_DEFAULTS["topk"]["top_k"],
        "sampled": ASSUMED_DISTINCT_DRAWS * LOGITS_DEFAULTS["sampled"]["num_draws"],
        "nucleus": ASSUMED_NUCLEUS,
    }
    own = manifest.codecs.logits.kind
    logits = {}
    for name, settings in LOGITS.items():
        if name == "none":
            continue
        entries = entries_per_position if settings["kind"] == own else kept.get(name, 0.0)
        settings = manifest.codecs.logits.model_dump(exclude_none=True) if name == own else settings
        other = with_codecs(manifest, logits=settings)
        found = store_size(data, other, entries_per_position=entries, attachments={}, overhead=False)
        logits[name] = found.by_target["logits"]
    return {"attention": attention, "vision_top": top, "vision_all": every, "logits": logits}


def bytes_by_profile(
    data: DataSize, manifest: Manifest, entries_per_position: float, attachments: Mapping[str, int]
) -> dict[str, int]:
    """Profile -> bytes of the whole store.

    Args:
        attachments: also those that only some profiles have.
    """
    sizes = {}
    for name in PROFILES:
        other = with_codecs(manifest, **profile_codecs(name))
        files = attachments_of(attachments, other.codecs)
        entries = entries_per_position if manifest.codecs.logits.kind == "nucleus" else ASSUMED_NUCLEUS
        sizes[name] = store_size(data, other, entries_per_position=entries, attachments=files).total
    return sizes


def attachments_of(files: Mapping[str, int], codecs: Codecs) -> dict[str, int]:
    """Bytes of the files that a store with these codecs carries, of those that it may carry."""
    carried = {LM_HEAD_FILE: codecs.logits.kind == "hidden", STEM_FILE: bool(codecs.from_stem)}
    return {name: size for name, size in files.items() if carried.get(name, True)}


def with_codecs(manifest: Manifest, **changed: Any) -> Manifest:
    """The manifest with other codecs."""
    codecs = {**manifest.codecs.model_dump(exclude_none=True), **changed}
    if codecs["vision_all"] in NOT_STORED and codecs["vision_top"] == FROM_ALL:
        codecs["vision_top"] = "none"
    return manifest.model_copy(update={"codecs": Codecs.model_validate(codecs)})
