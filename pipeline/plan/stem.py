"""Whether a run can take its alignment targets from the teacher's stem, what that saves and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import stem_depth_of, stem_layers_of, takes_from_stem, tower_match
from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import weight_gradient_share
from alignkd.pipeline.plan.time.devices import Device
from alignkd.pipeline.plan.time.hours import STUDENT_SHARE, hours
from alignkd.pipeline.plan.time.operations import stem_flops, training_flops
from alignkd.storage.codecs.settings import NOT_STORED
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.families.stem import StemSizes
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.designs import design_or_reason
from alignkd.vlm.stem.extract import builder_entries
from alignkd.vlm.stem.file import StemParts, stem_file_bytes

_SHA256 = "0" * 64
# A stem with whole layers costs less than stored attention up to this share of a step's operations.
MAX_SHARE = 0.05
# Bytes per second at which a store is read, assumed: above that share, storing costs less only if it is read faster
# than the stem computes.
READ_RATE = 500e6
DEFAULT_CODEC = "float16"
# the keys of `builder_entries`, for a plan without a tokenizer
TYPICAL_ENTRIES = ("tokenizer", "image_processor", "vision_tokens", "tokenizer_probe")


@dataclass(frozen=True, kw_only=True)
class StemPlan:
    """The stem's part of a plan.

    Attributes:
        usable: whether the family has a stem, and teacher and student the same vision tower; None if unknown.
        reason: why, as a phrase.
        used: the configuration takes a target from the stem.
        depth: depth of the stem that gives every alignment target.
        layers: the decoder layers whose attention is a target.
        sizes: sizes of this stem in the teacher's dtype, without `lm_head`; None if the family has no stem.
        store_bytes: bytes of the whole store with `store.profile: stem`; None likewise.
        saved_bytes: additional bytes of the configuration's own store; negative if that is smaller.
        operations: share of a training step's operations that the stem adds; 0 if no student is trained.
        step_seconds: seconds that it adds to a step on one device of the plan's kind, by arithmetic; likewise.
        read_seconds: seconds to read the attention of a step's samples instead, at `READ_RATE`.
        attention_bytes: bytes of the attention of `layers` in the store instead, with the codec `attention_codec`.
        attention_key: key of the configuration that sets the codec.
        room: whether the disk has room for them; None if it is not known.
    """

    usable: bool | None
    reason: str
    used: bool
    depth: int = 1
    layers: tuple[int, ...] = (0,)
    sizes: StemSizes | None = None
    store_bytes: int | None = None
    saved_bytes: int = 0
    operations: float = 0.0
    step_seconds: float = 0.0
    read_seconds: float = 0.0
    attention_bytes: int = 0
    attention_codec: str = ""
    attention_key: str = "store.attention"
    room: bool | None = None

    @property
    def has_whole_layers(self) -> bool:
        """Whether decoder layers run in every step, beyond the queries and keys of one."""
        return self.depth > 1

    @property
    def storing_is_cheaper(self) -> bool:
        """Whether the attention of the layers should be stored instead of computed by whole layers."""
        is_dear = self.operations > MAX_SHARE and self.step_seconds > self.read_seconds
        return self.has_whole_layers and is_dear and self.room is not False

    @property
    def recommended(self) -> bool:
        """Whether the stem gives exact alignment targets with fewer bytes and is not chosen yet."""
        return self.usable is True and not self.used and self.saved_bytes > 0 and not self.storing_is_cheaper

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
            "depth": self.depth,
            "attention_layers": list(self.layers),
            "operations_share": self.operations,
            "seconds_per_step": self.step_seconds,
            "read_seconds_per_step": self.read_seconds,
            "stored_attention_bytes": self.attention_bytes,
            "stored_attention_codec": self.attention_codec,
            "storing_is_cheaper": self.storing_is_cheaper,
        }


@dataclass(frozen=True, kw_only=True)
class StemInputs:
    """What a plan of the stem is made from.

    Attributes:
        data, teacher, student, load: as in the whole plan.
        teacher_config: sizes of the teacher.
        store_bytes: bytes of the store.
        with_stem: bytes of the store with the profile `stem`; None if the family has no stem.
        attention: codec -> bytes of the attention of the configuration's layers.
        device: the device of the plan.
        free: bytes that are free for the store; None if unknown.
    """

    data: DataSize
    teacher: ModelShapes
    teacher_config: ModelConfig
    student: ModelShapes | None
    load: StudentLoad | None
    store_bytes: int
    with_stem: int | None
    attention: Mapping[str, int]
    device: Device
    free: int | None


def stem_plan(config: RunConfig, given: StemInputs) -> StemPlan:
    """The stem's part of a plan.

    Raises:
        InputError: the configuration takes targets from a stem, and the teacher's family has none of this depth.
    """
    assert config.teacher is not None
    depth, used = stem_depth_of(config, given.teacher_config), takes_from_stem(config)
    sizes = sizes_of(given.teacher_config, config.teacher, depth)
    if sizes is None or given.with_stem is None:
        reason = str(design_or_reason(given.teacher_config, depth))
        if used:
            raise InputError(f"{config.teacher.checkpoint}: targets come from the teacher's stem, but {reason}")
        return StemPlan(usable=False, reason=reason, used=False)
    usable, reason = tower_match(config)
    operations, share = _operations(given, depth)
    codec = config.store.codec_of("attention")
    is_stored = codec not in NOT_STORED
    codec = codec if is_stored else DEFAULT_CODEC
    attention = given.attention[codec]
    needed = given.store_bytes + (0 if is_stored else attention)
    batch = 0 if config.train is None else config.train.global_batch_size(1)
    return StemPlan(
        usable=usable,
        reason=reason,
        used=used,
        depth=depth,
        layers=stem_layers_of(config, given.teacher_config),
        sizes=sizes,
        store_bytes=given.with_stem,
        saved_bytes=given.store_bytes - given.with_stem,
        operations=share,
        step_seconds=3600 * hours(operations * batch, given.device, STUDENT_SHARE),
        read_seconds=attention / given.data.num_records * batch / READ_RATE,
        attention_bytes=attention,
        attention_codec=codec,
        attention_key="store.attention" if isinstance(config.store.attention, str) else "store.attention.codec",
        room=None if given.free is None else needed <= given.free,
    )


def _operations(given: StemInputs, depth: int) -> tuple[float, float]:
    """Operations per sample that the stem adds to training, and their share of a step; 0 if no student is trained."""
    student, load, data = given.student, given.load, given.data
    if student is None or load is None:
        return 0.0, 0.0
    shape = {"tokens": data.mean("length"), "images": data.mean("images"), "vision": data.mean("vision")}
    step = training_flops(
        student,
        gradient_checkpointing=load.gradient_checkpointing,
        weight_gradients=weight_gradient_share(student, load.trained),
        supervised=data.mean("supervised"),
        **shape,
    )
    added = stem_flops(given.teacher, depth=depth, **shape)
    return added, added / step


def stem_bytes_on_disk(
    teacher: ModelConfig, settings: TeacherConfig, builder: Preparation | None, depth: int | None = None
) -> int | None:
    """Size of the stem file of a store, None if the family has no stem of this depth.

    Placeholders stand for hashes, whose length is known.
    """
    design = design_or_reason(teacher, depth)
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


def sizes_of(teacher: ModelConfig, settings: TeacherConfig, depth: int | None = None) -> StemSizes | None:
    """Sizes of the stem without `lm_head`; None if the family has no stem of this depth."""
    design = design_or_reason(teacher, depth)
    return None if isinstance(design, str) else design.sizes(TORCH_DTYPES[settings.dtype], lm_head=False)
