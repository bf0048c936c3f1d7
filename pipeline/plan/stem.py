"""Whether a run can take its alignment targets from the teacher's stem, what that saves and what it costs."""

from dataclasses import dataclass
from typing import Any

import torch

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import takes_from_stem, tower_match
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import weight_gradient_share
from alignkd.pipeline.plan.samples import DataSize
from alignkd.pipeline.plan.time.operations import stem_flops, training_flops
from alignkd.teacher_dump.config import TeacherConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.stem import StemSizes
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.designs import design_or_reason
from alignkd.vlm.stem.extract import builder_entries
from alignkd.vlm.stem.file import StemParts, stem_file_bytes

_SHA256 = "0" * 64
# the keys of `builder_entries`, for a plan without a tokenizer
TYPICAL_ENTRIES = ("tokenizer", "image_processor", "vision_tokens", "tokenizer_probe")


@dataclass(frozen=True, kw_only=True)
class StemPlan:
    """The stem's part of a plan.

    Attributes:
        usable: whether the family has a stem, and teacher and student the same vision tower; None if unknown.
        reason: why, as a phrase.
        used: the configuration takes a target from the stem.
        sizes: sizes of the stem in the teacher's dtype, without `lm_head`; None if the family has no stem.
        store_bytes: bytes of the whole store with `store.profile: stem`; None likewise.
        saved_bytes: additional bytes of the configuration's own store; negative if that is smaller.
        operations: share of a training step's operations that the stem adds; 0 if no student is trained.
    """

    usable: bool | None
    reason: str
    used: bool
    sizes: StemSizes | None
    store_bytes: int | None
    saved_bytes: int
    operations: float

    @property
    def recommended(self) -> bool:
        """Whether the stem gives exact alignment targets with fewer bytes and is not chosen yet."""
        return self.usable is True and not self.used and self.saved_bytes > 0

    def to_json(self) -> dict[str, Any]:
        """The plan of the stem as plain values."""
        return {
            "usable": self.usable,
            "reason": self.reason,
            "used": self.used,
            "recommended": self.recommended,
            "store_bytes": self.store_bytes,
            "device_bytes": None if self.sizes is None else self.sizes.device,
            "host_bytes": None if self.sizes is None else self.sizes.host,
            "operations_share": self.operations,
        }


def stem_plan(
    config: RunConfig,
    data: DataSize,
    teacher: ModelShapes,
    teacher_config: ModelConfig,
    student: ModelShapes | None,
    load: StudentLoad | None,
    store_bytes: int,
    with_stem: int | None,
) -> StemPlan:
    """The stem's part of a plan whose store takes `store_bytes`, or `with_stem` bytes with the profile `stem`.

    Raises:
        InputError: the configuration takes targets from a stem, and the teacher's family has none.
    """
    assert config.teacher is not None
    sizes, used = sizes_of(teacher_config, config.teacher), takes_from_stem(config)
    if sizes is None or with_stem is None:
        reason = str(design_or_reason(teacher_config))
        if used:
            raise InputError(f"{config.teacher.checkpoint}: targets come from the teacher's stem, but {reason}")
        return StemPlan(
            usable=False, reason=reason, used=False, sizes=None, store_bytes=None, saved_bytes=0, operations=0.0
        )
    usable, reason = tower_match(config)
    shape = {"tokens": data.mean("length"), "images": data.mean("images"), "vision": data.mean("vision")}
    share = 0.0
    if student is not None and load is not None:
        supervised = data.mean("supervised")
        step = training_flops(
            student,
            gradient_checkpointing=load.gradient_checkpointing,
            weight_gradients=weight_gradient_share(student, load.trained),
            supervised=supervised,
            **shape,
        )
        share = stem_flops(teacher, **shape) / step
    return StemPlan(
        usable=usable,
        reason=reason,
        used=used,
        sizes=sizes,
        store_bytes=with_stem,
        saved_bytes=store_bytes - with_stem,
        operations=share,
    )


def stem_bytes_on_disk(teacher: ModelConfig, settings: TeacherConfig, builder: Preparation | None) -> int | None:
    """Size of the stem file of a store, None if the family has no stem.

    Placeholders stand for hashes, whose length is known.
    """
    design = design_or_reason(teacher)
    if isinstance(design, str):
        return None
    dtype = TORCH_DTYPES[settings.dtype]
    weights = {
        key: torch.empty(shape, dtype=dtype, device="meta") for key, shape in design.shapes(lm_head=False).items()
    }
    known = dict.fromkeys(TYPICAL_ENTRIES, _SHA256) if builder is None else builder_entries(builder)
    fingerprint = {**known, "weights": _SHA256, **design.settings_fingerprint}
    tower = dict.fromkeys(TORCH_DTYPES, _SHA256)
    return stem_file_bytes(StemParts(weights=weights, fingerprint=fingerprint, tower=tower, design=design))


def sizes_of(teacher: ModelConfig, settings: TeacherConfig) -> StemSizes | None:
    """Sizes of the stem without `lm_head`; None if the family has no stem."""
    design = design_or_reason(teacher)
    return None if isinstance(design, str) else design.sizes(TORCH_DTYPES[settings.dtype], lm_head=False)
