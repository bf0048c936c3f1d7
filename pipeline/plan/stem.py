"""Whether a run may take its alignment targets from the teacher's stem, and what that saves and costs."""

from dataclasses import dataclass
from typing import Any

import torch

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.plan.devices import training_flops
from alignkd.pipeline.plan.memory import StudentLoad
from alignkd.pipeline.plan.models import ModelShapes, config_of
from alignkd.pipeline.plan.samples import DataSize
from alignkd.storage.codecs.settings import STEM_TARGETS
from alignkd.student_train.target_source import target_source
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.stem.extract import builder_entries
from alignkd.vlm.stem.file import StemParts, stem_file_bytes
from alignkd.vlm.stem.stem import StemSizes, stem_shapes, stem_sizes
from alignkd.vlm.weights.checkpoint import Checkpoint
from alignkd.vlm.weights.hub import cached_checkpoint
from alignkd.vlm.weights.tower_hash import checkpoint_tower_hash, tower_settings

_SHA256 = "0" * 64
# of `builder_entries`, where there is no tokenizer to ask
TYPICAL_ENTRIES = ("tokenizer", "image_processor", "vision_tokens", "tokenizer_probe")


@dataclass(frozen=True, kw_only=True)
class StemPlan:
    """The stem's part of a plan.

    Attributes:
        usable: whether teacher and student share their vision tower; None where it is not known.
        reason: in words.
        used: the configuration takes a target from the stem.
        sizes: of the stem in the teacher's dtype, without `lm_head`.
        store_bytes: of the whole store by `store.profile: stem`.
        saved_bytes: how much more the configuration's own store takes; negative where that is smaller.
        operations: share of a training step's operations that the stem adds; 0 where nobody is trained.
    """

    usable: bool | None
    reason: str
    used: bool
    sizes: StemSizes
    store_bytes: int
    saved_bytes: int
    operations: float

    @property
    def recommended(self) -> bool:
        """Exact alignment targets for less room, and not chosen yet."""
        return self.usable is True and not self.used and self.saved_bytes > 0

    def to_json(self) -> dict[str, Any]:
        """Bytes as numbers."""
        return {
            "usable": self.usable,
            "reason": self.reason,
            "used": self.used,
            "recommended": self.recommended,
            "store_bytes": self.store_bytes,
            "device_bytes": self.sizes.device,
            "host_bytes": self.sizes.host,
            "operations_share": self.operations,
        }


def stem_plan(
    config: RunConfig,
    data: DataSize,
    teacher: ModelShapes,
    teacher_config: VLMConfig,
    student: ModelShapes | None,
    load: StudentLoad | None,
    store_bytes: int,
    with_stem: int,
) -> StemPlan:
    """The stem's part of a plan whose store takes `store_bytes`, and `with_stem` by profile stem."""
    assert config.teacher is not None
    usable, reason = tower_match(config)
    shape = {"tokens": data.mean("length"), "images": data.mean("images")}
    share = 0.0
    if student is not None and load is not None:
        supervised = data.mean("supervised")
        step = training_flops(
            student, gradient_checkpointing=load.gradient_checkpointing, supervised=supervised, **shape
        )
        share = stem_flops(teacher, **shape) / step
    return StemPlan(
        usable=usable,
        reason=reason,
        used=takes_from_stem(config),
        sizes=sizes_of(teacher_config, config.teacher),
        store_bytes=with_stem,
        saved_bytes=store_bytes - with_stem,
        operations=share,
    )


def tower_match(config: RunConfig) -> tuple[bool | None, str]:
    """Whether the stem's features can be the student's: its tower's settings, then its weights in the student's dtype.

    Weights are read only where both checkpoints are on this machine; nothing is fetched.
    """
    teacher, student = config.teacher, config.student
    if teacher is None or student is None:
        return None, "the configuration has no student"
    try:
        theirs, own = (config_of(model.checkpoint, model.vision_config) for model in (teacher, student))
    except InputError:
        return None, f"the student {student.checkpoint} is not there yet"
    for name, found, expected in _differing(own, theirs):
        return False, f"{name} is {found} in the student, {expected} in the teacher"
    folders = (cached_checkpoint(teacher.checkpoint), cached_checkpoint(student.checkpoint))
    if folders[0] is None or folders[1] is None:
        return None, "not both checkpoints are on this machine; `alignkd train` compares the towers"
    checkpoints = (
        Checkpoint.open(folders[0], vision_config=teacher.vision_config),
        Checkpoint.open(folders[1], vision_config=student.vision_config),
    )
    try:
        hashes = {checkpoint_tower_hash(checkpoint, student.dtype) for checkpoint in checkpoints}
    except InputError as error:
        return None, f"the towers cannot be compared ({error})"
    if len(hashes) > 1:
        return False, f"the weights of the vision towers differ in {student.dtype}"
    return True, f"teacher and student share their vision tower (weights compared in {student.dtype})"


def takes_from_stem(config: RunConfig) -> bool:
    """Whether training takes a target that its losses weigh from the stem."""
    if config.train is None:
        return bool(config.store.codecs().from_stem)
    weighed = {*config.train.losses.needed_targets.values()}
    chosen, has_stem = config.train.targets, config.train.stem is not None
    return any(
        target_source(getattr(config.store, key), getattr(chosen, key), has_stem=has_stem) == "stem"
        for key in weighed & set(STEM_TARGETS)
    )


def stem_bytes_on_disk(teacher: VLMConfig, settings: TeacherConfig, builder: ExampleBuilder | None) -> int:
    """Size of the stem file that a store carries; hashes, whose length is known, are made up."""
    dtype = TORCH_DTYPES[settings.dtype]
    weights = {
        key: torch.empty(shape, dtype=dtype, device="meta")
        for key, shape in stem_shapes(teacher, lm_head=False).items()
    }
    known = dict.fromkeys(TYPICAL_ENTRIES, _SHA256) if builder is None else builder_entries(builder)
    fingerprint = {**known, "weights": _SHA256, "vision_config": _SHA256}
    tower = dict.fromkeys(TORCH_DTYPES, _SHA256)
    return stem_file_bytes(StemParts(weights=weights, fingerprint=fingerprint, tower=tower, config=teacher))


def sizes_of(teacher: VLMConfig, settings: TeacherConfig) -> StemSizes:
    """Of the stem without `lm_head`."""
    return stem_sizes(teacher, TORCH_DTYPES[settings.dtype], lm_head=False)


def stem_flops(teacher: ModelShapes, *, tokens: float, images: float) -> float:
    """Operations that the stem adds to a sample's training step: queries and keys of all tokens, and the projector."""
    D, size = teacher.size.hidden_size, teacher.size
    keys = size.num_key_value_heads * D // size.num_heads
    projector = 2 * teacher.vision_patches * (teacher.vision_hidden_size + D) * D
    return 2 * D * (D + keys) * tokens + images * projector


def _differing(own: VLMConfig, theirs: VLMConfig) -> list[tuple[str, Any, Any]]:
    found = {**tower_settings(own), "vision_tokens": own.vision_tokens}
    expected = {**tower_settings(theirs), "vision_tokens": theirs.vision_tokens}
    return [(name, found[name], expected[name]) for name in expected if found[name] != expected[name]]
