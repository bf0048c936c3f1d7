"""Bytes of the same data with other codecs: the cost of each choice of `store`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.disk.entries import ASSUMED_DISTINCT_DRAWS, ASSUMED_NUCLEUS
from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.disk.store import store_size
from alignkd.pipeline.plan.memory.loads import ELEMENT
from alignkd.pipeline.plan.stem import stem_bytes_on_disk
from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import (
    FROM_ALL,
    LOGITS_DEFAULTS,
    NONE,
    NOT_STORED,
    PROFILES,
    STEM,
    Codecs,
    profile_codecs,
)
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.attention import attention_targets, with_codec
from alignkd.storage.schema.targets.vision import VISION_STATES, keeps
from alignkd.teacher_dump.fingerprint import manifest_of
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.designs import design_or_reason
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, TOKENIZER_FILE

TYPICAL_TOKENIZER_BYTES = 500_000
SAFETENSORS_HEADER_BYTES = 88
_SHA256 = hashlib.sha256(b"").hexdigest()
# the kinds of logits that are compared
LOGITS: Mapping[str, Mapping[str, Any]] = {
    **{kind: {"kind": kind, **settings} for kind, settings in LOGITS_DEFAULTS.items()},
    "hidden int8": {"kind": "hidden", "dtype": "int8_group"},
}


def plan_manifest(
    config: RunConfig, teacher: PlannedModel, builder: Preparation | None, data: DataSize, files: Mapping[str, int]
) -> Manifest:
    """The manifest that a dump would write, exact in its length: placeholders stand for hashes of unread files.

    Args:
        files: result of `attachment_bytes`.
    """
    assert config.teacher is not None
    known = {} if builder is None else builder.fingerprint
    probe = {} if builder is None else builder.probe()
    is_mobilevlm = isinstance(teacher.config, VLMConfig)
    settings = {"vision_config": _SHA256} if is_mobilevlm else teacher.checkpoint.settings_fingerprint
    vocab_size, num_tokens = teacher.config.vocab_size, None
    if builder is not None and teacher.config.pads_vocabulary:
        num_tokens = min(builder.num_tokens, vocab_size)
    manifest = manifest_of(
        config.teacher,
        config.store,
        teacher.config,
        checkpoint={**known, "tokenizer_probe": json.dumps(probe), "weights": _SHA256, **settings},
        data={"conversations": _SHA256, "max_tokens": str(config.max_tokens)},
        attachments={},
        num_samples=data.num_samples,
        num_tokens=num_tokens,
    )
    return manifest.model_copy(update={"attachments": dict.fromkeys(attachments_of(files, manifest), _SHA256)})


def bytes_by_codec(
    data: DataSize, manifest: Manifest, entries_per_position: float, *, has_stem: bool
) -> dict[str, dict[str, int]]:
    """Target -> codec -> bytes of that target over the whole store.

    Args:
        has_stem: whether the teacher's family has a stem.
        entries_per_position: kept tokens per position; used for the configuration's own kind of logits, if that keeps
            a list of tokens.
    """

    def sizes(target: str, **changed: Any) -> int:
        other = with_codecs(manifest, **changed)
        found = store_size(data, other, entries_per_position=entries_per_position, attachments={}, overhead=False)
        return found.by_target[target]

    more = (STEM,) if has_stem else ()
    attention = {name: sizes("attention", attention=name) for name in (*codec_names("attention"), *more)}
    top = {name: sizes("vision_top", vision_top=name) for name in (*codec_names("vision_top"), *more)}
    every = {name: sizes("vision_all", vision_all=name) for name in (*codec_names("vision_all"), *more)}
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
    data: DataSize,
    manifest: Manifest,
    entries_per_position: float,
    attachments: Mapping[str, int],
    stem: int | None,
) -> dict[str, int]:
    """Profile -> bytes of the whole store.

    Args:
        attachments: file -> bytes, including files that only some profiles need, but a stem only if every store of this
            configuration carries it.
        stem: bytes of the stem that gives every alignment target; None: there is no profile `stem`.
    """
    sizes = {}
    for name in PROFILES:
        if name == STEM and stem is None:
            continue
        other = with_codecs(manifest, **profile_codecs(name))
        files = attachments_of(attachments, other)
        if name == STEM and stem is not None:
            files[STEM_FILE] = stem
        entries = entries_per_position if manifest.codecs.logits.kind == "nucleus" else ASSUMED_NUCLEUS
        sizes[name] = store_size(data, other, entries_per_position=entries, attachments=files).total
    return sizes


def attachment_bytes(config: RunConfig, model: PlannedModel, builder: Preparation | None) -> dict[str, int]:
    """File -> bytes of the files that this store contains next to its shards, and of the teacher's head.

    Raises:
        InputError: the store carries a stem that the teacher does not have.
    """
    assert config.teacher is not None
    teacher, sizes, depth = config.teacher, model.config, config.store.stem_depth(model.config)
    stem = None if depth is None else stem_bytes_on_disk(sizes, teacher, builder, depth)
    if depth is not None and stem is None:
        why = "targets come from the teacher's stem" if config.store.from_stem else f"store.stem.depth is {depth}"
        raise InputError(f"{teacher.checkpoint}: {why}, but {design_or_reason(sizes, depth)}")
    head = ELEMENT[teacher.dtype] * sizes.vocab_size * sizes.hidden_size + SAFETENSORS_HEADER_BYTES
    return {
        **_tokenizer_files(model, builder),
        LM_HEAD_FILE: head,
        **({} if stem is None else {STEM_FILE: stem}),
    }


def _tokenizer_files(model: PlannedModel, builder: Preparation | None) -> dict[str, int]:
    """The files that show tokens as text, and those of the processor."""
    if isinstance(builder, MobileVLMPreparation):
        return {TOKENIZER_FILE: builder.tokenizer.model_file.stat().st_size}
    if isinstance(model.config, VLMConfig):
        return {TOKENIZER_FILE: TYPICAL_TOKENIZER_BYTES}
    return {name: len(content) for name, content in model.checkpoint.attachments().items()}


def attachments_of(files: Mapping[str, int], manifest: Manifest) -> dict[str, int]:
    """Those of `files` (name -> bytes) that a store with these targets contains."""
    has_head = manifest.codecs.logits.kind == "hidden" or keeps(manifest, VISION_STATES)
    return {name: size for name, size in files.items() if has_head or name != LM_HEAD_FILE}


def with_codecs(manifest: Manifest, **changed: Any) -> Manifest:
    """A copy of the manifest with other codecs; `attention` is that of chosen layers where the store keeps these."""
    of_layers = attention_targets(manifest.more)
    more = manifest.more
    if of_layers and "attention" in changed:
        more = tuple(with_codec(target, changed["attention"]) for target in of_layers.values())
        more += tuple(target for target in manifest.more if target not in of_layers.values())
        # the first layer's own codec stays, unless the stem gives all layers
        own = NONE if changed["attention"] == STEM else manifest.codecs.attention
        changed = {**changed, "attention": own}
    codecs = {**manifest.codecs.model_dump(exclude_none=True), **changed}
    if codecs["vision_all"] in NOT_STORED and codecs["vision_top"] == FROM_ALL:
        codecs["vision_top"] = "none"
    return manifest.model_copy(update={"codecs": Codecs.model_validate(codecs), "more": more})
