"""What a run will take before anything runs: bytes of the store, memory of both phases, hours.

Of the models' weights only the two vision towers are read, and only where both checkpoints are on this machine.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.data.scan import Scan
from alignkd.pipeline.data.stats import open_with_progress
from alignkd.pipeline.plan.advice import advice
from alignkd.pipeline.plan.choices import (
    ASSUMED_DISTINCT_DRAWS,
    ASSUMED_NUCLEUS,
    attachments_of,
    bytes_by_codec,
    bytes_by_profile,
    plan_manifest,
)
from alignkd.pipeline.plan.devices import (
    DEVICES,
    QUANTISED_SHARE,
    STUDENT_SHARE,
    TEACHER_SHARE,
    device_named,
    forward_flops,
    hours,
    training_flops,
)
from alignkd.pipeline.plan.loads import student_load, teacher_load
from alignkd.pipeline.plan.memory import ELEMENT, Memory, StudentLoad, student_memory, teacher_memory
from alignkd.pipeline.plan.models import ModelShapes, PlannedModel, config_of
from alignkd.pipeline.plan.probe import Probe, entries_in_store, run_probe
from alignkd.pipeline.plan.samples import DataSize, assumed_samples, count_samples
from alignkd.pipeline.plan.stem import StemPlan, sizes_of, stem_bytes_on_disk, stem_flops, stem_plan, takes_from_stem
from alignkd.pipeline.plan.store import StoreSize, store_size
from alignkd.storage.codecs.settings import STEM
from alignkd.storage.schema.order import shard_plan
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.device_report import host_memory
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.model.config import VLMConfig
from alignkd.vlm.stem.file import STEM_FILE
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, TOKENIZER_FILE

TYPICAL_TOKENIZER_BYTES = 500_000
SAFETENSORS_HEADER_BYTES = 88
DEVICE_COUNTS = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What is asked beside the configuration.

    Attributes:
        gpu_memory: bytes of each device; None takes those of `device`.
        host_memory: bytes of the machine's own memory; None takes this machine's.
        disk: bytes there is room for; None takes what is free where the store goes.
        device: of `DEVICES`, for the memory if that is not given.
        devices: how many train together, and run the dump side by side.
        samples, mean_tokens: the data set's size where there is no data to count.
        supervised_share: of the text tokens after the image, in that case.
        count: samples to count at least.
        entries: kept tokens per supervised position, where that is known.
        probe: samples to run the teacher on, 0 for none.
    """

    gpu_memory: int | None = None
    host_memory: int | None = None
    disk: int | None = None
    device: str = "rtx3090"
    devices: int = 1
    samples: int | None = None
    mean_tokens: float | None = None
    supervised_share: float = 0.5
    count: int = 4096
    entries: float | None = None
    probe: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One dump and one training.

    Attributes:
        name: of the stage, None in a file without stages.
        entries_per_position: kept tokens per supervised position; `entries_source` says where the figure is from.
        choices: target -> codec -> bytes of that target over the whole store.
        profiles: profile -> bytes of the whole store.
        stem: whether the teacher's stem can give the alignment targets, and what that takes.
        student: None where the configuration trains nobody.
        table: the student's memory for other numbers of devices, with and without offloading and checkpointing.
        hours: device -> phase -> hours on one device.
        probe: what was measured, if anything.
        advice: what to change, in order; empty where everything fits.
    """

    name: str | None
    data: DataSize
    store: StoreSize
    entries_per_position: float
    entries_source: str
    choices: Mapping[str, Mapping[str, int]]
    profiles: Mapping[str, int]
    stem: StemPlan
    teacher: Memory
    student: Memory | None
    table: Sequence[Mapping[str, Any]]
    hours: Mapping[str, Mapping[str, float]]
    probe: Probe | None
    gpu_memory: int
    host_memory: int
    disk: int | None
    advice: Sequence[Mapping[str, Any]]
    notes: Sequence[str]

    @property
    def fits_by(self) -> dict[str, bool]:
        """Whether each part fits."""
        fits = {
            "store": self.disk is None or self.store.total <= self.disk,
            "teacher": self.teacher.fits(self.gpu_memory),
        }
        if self.student is None:
            return fits
        return {
            **fits,
            "student": self.student.fits(self.gpu_memory),
            "student_host": self.student.fits_host(self.host_memory),
        }

    def to_json(self) -> dict[str, Any]:
        """Bytes and hours as numbers."""
        rows = self.data.rows
        student = self.student
        return {
            "stage": self.name,
            "store_bytes": self.store.total,
            "store_bytes_by_target": dict(self.store.by_target),
            "store_bytes_by_codec": {target: dict(sizes) for target, sizes in self.choices.items()},
            "store_bytes_by_profile": dict(self.profiles),
            "stem": self.stem.to_json(),
            "teacher_memory_bytes": self.teacher.peak,
            "teacher_memory_by_part": dict(self.teacher.parts),
            "student_memory_bytes": None if student is None else student.peak,
            "student_memory_by_part": None if student is None else dict(student.parts),
            "student_host_bytes": None if student is None else student.host,
            "student_host_by_part": None if student is None else dict(student.host_parts),
            "student_memory_table": [dict(row) for row in self.table],
            "hours": {device: dict(phases) for device, phases in self.hours.items()},
            "fits": all(self.fits_by.values()),
            "fits_by": self.fits_by,
            "gpu_memory_bytes": self.gpu_memory,
            "host_memory_bytes": self.host_memory,
            "disk_bytes": self.disk,
            "recommendation": [dict(step) for step in self.advice],
            "data": {
                "samples": self.data.num_samples,
                "records": round(self.data.num_records),
                "counted": self.data.counted,
                "counted_all": self.data.exact,
                "unusable_share": self.data.unusable / max(1, self.data.counted),
                "mean_tokens": self.data.mean("length"),
                "longest": int(rows.length.max(initial=0)),
                "mean_supervised": self.data.mean("supervised"),
                "mean_queries": self.data.mean("queries"),
                "mean_images": self.data.mean("images"),
            },
            "entries_per_position": self.entries_per_position,
            "entries_source": self.entries_source,
            "measured": None if self.probe is None else asdict(self.probe),
            "notes": list(self.notes),
        }


def make_plan(
    config: RunConfig, options: PlanOptions, *, name: str | None = None, student_shapes: ModelShapes | None = None
) -> Plan:
    """The plan of one configuration.

    Args:
        student_shapes: of the student, where its checkpoint does not exist yet.

    Raises:
        InputError: unusable data, checkpoint or options.
    """
    assert config.teacher is not None
    teacher_model = PlannedModel(config.teacher.checkpoint, config.teacher.vision_config)
    teacher_config = teacher_model.config
    teacher = ModelShapes.of(teacher_model.name, teacher_config)
    builder = teacher_model.checkpoint.example_builder(config.data.template) if options.samples is None else None
    data = _data(config, options, teacher, builder)
    if not len(data.rows):
        raise InputError(
            f"{config.data.conversations}: none of {data.counted} counted samples is usable; see `alignkd data stats`"
        )
    probe = run_probe(config, options.probe) if options.probe else None
    entries, source = _entries(config.store, teacher_config, options.entries, probe)
    manifest = plan_manifest(config, teacher_config, builder, data)
    files = _attachments(config, teacher, teacher_config, builder)
    attachments = attachments_of(files, manifest.codecs)
    store = store_size(data, manifest, entries_per_position=entries, attachments=attachments)
    device_bytes = options.gpu_memory or device_named(options.device).memory
    student = student_shapes if config.student is None or student_shapes is not None else shapes_of_student(config)
    stem_weights = sizes_of(teacher_config, config.teacher).device if takes_from_stem(config) else 0
    load = None
    if student is not None:
        load = student_load(config, data, store, teacher, devices=options.devices, stem_weights=stem_weights)
    profiles = bytes_by_profile(data, manifest, entries, files)
    stem = stem_plan(config, data, teacher, teacher_config, student, load, store.total, profiles[STEM])
    plan = Plan(
        name=name,
        data=data,
        store=store,
        entries_per_position=entries,
        entries_source=source,
        choices=bytes_by_codec(data, manifest, entries),
        profiles=profiles,
        stem=stem,
        teacher=teacher_memory(teacher, teacher_load(config, data, store)),
        student=None if student is None or load is None else student_memory(student, load),
        table=() if student is None or load is None else _table(student, load, device_bytes),
        hours=_hours(config, data, teacher, student),
        probe=probe,
        gpu_memory=device_bytes,
        host_memory=host_memory() if options.host_memory is None else options.host_memory,
        disk=options.disk if options.disk is not None else free_bytes(config.store.path),
        advice=(),
        notes=data.notes,
    )
    return advice(plan, config, teacher, student, load)


def shapes_of_student(config: RunConfig) -> ModelShapes | None:
    """Of the section `student`, None without one.

    Raises:
        InputError: no such checkpoint, or none of ours.
    """
    if config.student is None:
        return None
    found = config_of(config.student.checkpoint, config.student.vision_config)
    return ModelShapes.of(config.student.checkpoint, found)


def free_bytes(store: Path | str) -> int | None:
    """Free bytes where a store goes; None for a bucket."""
    if isinstance(store, str):
        return None
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _data(config: RunConfig, options: PlanOptions, teacher: ModelShapes, builder: ExampleBuilder | None) -> DataSize:
    store, data = config.store, config.data
    if builder is None:
        if options.mean_tokens is None or options.samples is None:
            raise InputError("--samples and --mean-tokens belong together; give both, or neither and a data set")
        return assumed_samples(
            options.samples,
            options.mean_tokens,
            shard_size=store.shard_size,
            vision_tokens=teacher.size.vision_tokens,
            supervised_share=options.supervised_share,
            plain=data.template == "plain",
        )
    samples = open_with_progress(data.conversations)
    if not len(samples):
        raise InputError(f"{data.conversations}: no conversations in it; give a file with at least one")
    images = data.images if data.images is not None and data.images.is_dir() else None
    return count_samples(
        Scan(files=(samples,), builder=builder, images=images, decode=False),
        shard_plan(len(samples), store.shard_size, store.seed),
        max_tokens=data.max_tokens,
        at_least=options.count,
        embed=store.inputs == "embed",
    )


def _entries(store: StoreConfig, teacher: VLMConfig, given: float | None, probe: Probe | None) -> tuple[float, str]:
    """Kept tokens per supervised position, and where the figure is from."""
    codec = store.logits
    if codec.kind not in ("topk", "nucleus", "sampled"):
        return 0.0, "no tokens are kept one by one"
    if given is not None:
        return given, "given"
    if probe is not None and probe.entries_per_position is not None:
        return probe.entries_per_position, "measured by the probe"
    if (found := entries_in_store(store)) is not None:
        return found, "measured on the store that is there"
    if codec.kind == "topk":
        assert codec.top_k is not None
        return float(min(codec.top_k, teacher.vocab_size)), "arithmetic: top_k"
    if codec.kind == "sampled":
        assert codec.num_draws is not None
        return max(
            1.0, ASSUMED_DISTINCT_DRAWS * codec.num_draws
        ), "assumed: a quarter of the draws are different tokens"
    assert codec.min_entries is not None and codec.max_entries is not None
    kept = min(max(ASSUMED_NUCLEUS, codec.min_entries), codec.max_entries, teacher.vocab_size)
    return kept, "assumed: a teacher of 1.2 nats per position; --probe measures it"


def _attachments(
    config: RunConfig, teacher: ModelShapes, teacher_config: VLMConfig, builder: ExampleBuilder | None
) -> dict[str, int]:
    """Bytes of the files that a store may carry."""
    assert config.teacher is not None
    tokenizer = TYPICAL_TOKENIZER_BYTES
    if builder is not None:
        tokenizer = builder.tokenizer.model_file.stat().st_size
    head = ELEMENT[config.teacher.dtype] * teacher.size.vocab_size * teacher.size.hidden_size
    return {
        TOKENIZER_FILE: tokenizer,
        LM_HEAD_FILE: head + SAFETENSORS_HEADER_BYTES,
        STEM_FILE: stem_bytes_on_disk(teacher_config, config.teacher, builder),
    }


def _table(student: ModelShapes, load: StudentLoad, device_bytes: int) -> list[dict[str, Any]]:
    """The student's memory for 1, 2, 4 and 8 devices, with and without offloading and checkpointing."""
    rows = []
    for devices in DEVICE_COUNTS:
        for offload in (False, True):
            for checkpointing in (False, True):
                other = replace(load, devices=devices, offload=offload, gradient_checkpointing=checkpointing)
                memory = student_memory(student, other)
                rows.append({"devices": devices, "offload": offload, "gradient_checkpointing": checkpointing,
                             "bytes": memory.peak, "host_bytes": memory.host,
                             "fits": memory.fits(device_bytes)})  # fmt: skip
    return rows


def _hours(
    config: RunConfig, data: DataSize, teacher: ModelShapes, student: ModelShapes | None
) -> dict[str, dict[str, float]]:
    """Hours of both phases on one device of each kind, by arithmetic."""
    assert config.teacher is not None
    shape = {"tokens": data.mean("length"), "images": data.mean("images"), "supervised": data.mean("supervised")}
    dump = forward_flops(teacher, **shape) * data.num_records
    share = TEACHER_SHARE * QUANTISED_SHARE[config.teacher.quantization]
    found = {name: {"dump": hours(dump, device, share)} for name, device in DEVICES.items()}
    if student is None or config.train is None:
        return found
    train = config.train
    seen = train.optimiser_steps(max(1, round(data.num_records)), 1) * train.global_batch_size(1)
    step = training_flops(student, gradient_checkpointing=train.gradient_checkpointing, **shape)
    if takes_from_stem(config):
        step += stem_flops(teacher, tokens=shape["tokens"], images=shape["images"])
    for name, device in DEVICES.items():
        found[name]["train"] = hours(step * seen, device, STUDENT_SHARE)
    return found
