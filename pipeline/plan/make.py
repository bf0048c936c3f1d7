"""Makes the plan of a configuration before anything runs: bytes of the store, memory of both phases, hours.

Of the models' weights only the two vision towers are read, and only if both checkpoints are on this machine.
"""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from alignkd.pipeline.config.checkpoint_config import PlannedModel
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import stem_depth_of, takes_from_stem, targets_from_stem
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.pipeline.plan.advice import advice, faster_choice
from alignkd.pipeline.plan.choices import (
    attachment_bytes,
    attachments_of,
    bytes_by_codec,
    bytes_by_profile,
    plan_manifest,
)
from alignkd.pipeline.plan.disk.entries import entries_per_position
from alignkd.pipeline.plan.disk.image_shape import measured_image
from alignkd.pipeline.plan.disk.samples import DataSize, assumed_samples, count_samples
from alignkd.pipeline.plan.disk.store import StoreSize, store_size
from alignkd.pipeline.plan.evaluation import EvaluationPlan, plan_evaluation
from alignkd.pipeline.plan.memory.from_config import student_load, teacher_load
from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.pipeline.plan.memory.table import memory_table
from alignkd.pipeline.plan.memory.teacher import teacher_memory
from alignkd.pipeline.plan.memory.teacher_host import teacher_host_bytes
from alignkd.pipeline.plan.memory.trained import CHECKPOINT_BYTES, counts_of, trained_adapters
from alignkd.pipeline.plan.objective import planned_objective
from alignkd.pipeline.plan.probe import run_probe
from alignkd.pipeline.plan.result import Plan, PlanOptions, TrainedPlan
from alignkd.pipeline.plan.stem import StemInputs, sizes_of, stem_bytes_on_disk, stem_plan
from alignkd.pipeline.plan.time.devices import device_named
from alignkd.pipeline.plan.time.hours import hours_by_device
from alignkd.pipeline.plan.time.padding import dump_padding, training_padding
from alignkd.storage.codecs.settings import STEM
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.plan import planned_shards
from alignkd.storage.schema.sources import MAX_SAMPLES
from alignkd.student_train.run.checks.unused import unused_line, unused_targets
from alignkd.student_train.trained.counts import described
from alignkd.vlm.data.data_list import DataList, needs_folder
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError
from alignkd.vlm.hardware.device_report import host_memory
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.file import STEM_FILE


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """What was read for a plan: data, and shapes of the models; `builder` is None if it is not needed.

    It is not needed if the data set is assumed, and every image has the same number of vision tokens.
    """

    model: PlannedModel
    teacher: ModelShapes
    student: ModelShapes | None
    builder: Preparation | None
    data: DataSize


def make_plan(
    config: RunConfig,
    options: PlanOptions,
    *,
    name: str | None = None,
    student_shapes: ModelShapes | None = None,
    trained: Collection[Path] = (),
) -> Plan:
    """Make the plan of one configuration.

    Args:
        name: name of the stage.
        student_shapes: shapes of the student, if its checkpoint does not exist yet.
        trained: see `plan_evaluation`.

    Raises:
        InputError: unusable data, checkpoint or options.
        TrainError: the global batch cannot be divided among the devices.
    """
    assert config.teacher is not None
    if config.train is not None:
        config.train.global_batch_size(options.devices)  # refused by the training, too
    if options.samples is not None and options.samples > MAX_SAMPLES:
        raise InputError(f"--samples is {options.samples}, but a store has at most {MAX_SAMPLES} samples; give fewer")
    samples = None if options.samples is not None else _opened(config)
    holds_images = samples is not None and samples.holds_images
    store_config = config.store.with_inputs(holds_images=holds_images, where=config.data[0].conversations)
    config = config.model_copy(update={"store": store_config})
    assert config.teacher is not None
    inputs = _read(config, options, student_shapes, samples)
    data, teacher, student = inputs.data, inputs.teacher, inputs.student
    probe = run_probe(config, options.probe) if options.probe else None
    measured = None if probe is None else probe.entries_per_position
    entries, source = entries_per_position(config.store, inputs.model.config, options.entries, measured)
    files = attachment_bytes(config, inputs.model, inputs.builder)
    manifest = plan_manifest(config, inputs.model, inputs.builder, data, files)
    attachments = attachments_of(files, manifest)
    store = store_size(data, manifest, entries_per_position=entries, attachments=attachments)
    profiles = _profiles(config, inputs, manifest, entries, files)
    choices = bytes_by_codec(data, manifest, entries, has_stem=STEM in profiles)
    load = _student_load(config, inputs, store, options.devices)
    device = device_named(options.device)
    device_bytes = options.gpu_memory or device.memory
    disk = options.disk if options.disk is not None else free_bytes(config.store.path)
    stem = stem_plan(
        config,
        StemInputs(
            data=data,
            teacher=teacher,
            teacher_config=inputs.model.config,
            student=student,
            load=load,
            store_bytes=store.total,
            with_stem=profiles.get(STEM),
            attention=choices["attention"],
            device=device,
            free=disk,
        ),
    )
    padding = _padding(config, data) if samples is not None else {}
    plan = Plan(
        name=name,
        data=data,
        store=store,
        entries_per_position=entries,
        entries_source=source,
        choices=choices,
        profiles=profiles,
        stem=stem,
        teacher=memory_of_teacher(config, data, store, teacher),
        student=None if student is None or load is None else student_memory(student, load),
        trained=None if student is None or load is None else _trained(student, load),
        table=() if student is None or load is None else memory_table(student, load, device_bytes),
        padding=padding,
        hours=hours_by_device(
            config, data, teacher, student, stem_depth=stem.depth, padding=padding or {"dump": 1.0, "train": 1.0}
        ),
        probe=probe,
        gpu_memory=device_bytes,
        host_memory=host_memory() if options.host_memory is None else options.host_memory,
        disk=disk,
        notes=data.notes,
        unused=_unused(config, manifest, store, data),
        evaluation=_evaluation(config, teacher, student, trained),
        objective=planned_objective(config.train),
    )
    fits = all(plan.fits_by.get(name, True) for name in ("student", "student_host"))
    faster = faster_choice(plan, student, load) if student is not None and load is not None and fits else None
    return replace(plan, advice=advice(plan, config, teacher, student, load), faster=faster)


def _evaluation(
    config: RunConfig, teacher: ModelShapes, student: ModelShapes | None, trained: Collection[Path]
) -> EvaluationPlan | None:
    return None if student is None else plan_evaluation(config, {"student": student, "teacher": teacher}, trained)


def _padding(config: RunConfig, data: DataSize) -> dict[str, float]:
    """Padded / real positions of each phase."""
    assert config.teacher is not None
    found = {"dump": dump_padding(config.teacher, data.rows)}
    return found if config.train is None else found | {"train": training_padding(config.train, data.rows.length)}


def _unused(config: RunConfig, manifest: Manifest, store: StoreSize, data: DataSize) -> str | None:
    """The line on stored targets that no loss compares with."""
    if config.train is None:
        return None
    found = unused_targets(manifest, config.train.losses, targets_from_stem(config.train, config.store))
    sizes = {target: size / max(1.0, data.num_records) for target, size in store.by_target.items()}
    return unused_line(found, sizes, "unused")


def memory_of_teacher(config: RunConfig, data: DataSize, store: StoreSize, teacher: ModelShapes) -> Memory:
    """The memory of the teacher pass on the device, and on the host where images have different sizes."""
    device = teacher_memory(teacher, teacher_load(config, data, store, teacher))
    host = teacher_host_bytes(config, data, store, teacher)
    return replace(device, host=sum(host.values()), host_parts=host)


def shapes_of_teacher(config: RunConfig) -> ModelShapes:
    """The shapes of the section `teacher`.

    Raises:
        InputError: no such checkpoint, or an unusable one.
    """
    assert config.teacher is not None
    model = PlannedModel(config.teacher.checkpoint, config.teacher.vision_config, config.teacher.processor)
    return _shapes(model, None if model.size.vision_tokens is not None else model.checkpoint.preparation())


def shapes_of_student(config: RunConfig) -> ModelShapes | None:
    """The shapes of the section `student`, None without one.

    Raises:
        InputError: no such checkpoint, or an unusable one.
    """
    if config.student is None:
        return None
    student = config.student
    model = PlannedModel(student.checkpoint, student.vision_config, student.processor)
    fixed = model.size.vision_tokens is not None
    return _shapes(model, None if fixed else model.checkpoint.preparation(config.template))


def _shapes(model: PlannedModel, builder: Preparation | None) -> ModelShapes:
    """The shapes of a model; one image is prepared where images have different numbers of vision tokens."""
    if model.size.vision_tokens is not None:
        return ModelShapes.of(model.size)
    assert builder is not None
    return ModelShapes.of(model.size, measured_image(builder, model.size.tower.patch_size))


def free_bytes(store: Path | str) -> int | None:
    """Free bytes on the disk of a store; None for a bucket."""
    if isinstance(store, str):
        return None
    place = store.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _opened(config: RunConfig) -> DataList:
    """The data; the message on a path that is not there names the options that plan without data."""
    try:
        return DataList(_readable(config), progress=ReadingBar())
    except InputError as error:
        if all(Path(one.conversations).exists() for one in config.data):
            raise
        without = "to plan before there is data, give --samples N and --mean-tokens T"
        raise InputError(f"{error}; {without}") from error


def _readable(config: RunConfig) -> list[DataSet]:
    """The data sets; an image folder that is not there is left out, so that nothing is looked for in it."""
    return [
        replace(data, images=data.images if data.images is not None and data.images.is_dir() else None)
        for data in config.data_sets
    ]


def _read(
    config: RunConfig, options: PlanOptions, student_shapes: ModelShapes | None, samples: DataList | None
) -> _Inputs:
    assert config.teacher is not None
    model = PlannedModel(config.teacher.checkpoint, config.teacher.vision_config, config.teacher.processor)
    needed = options.samples is None or model.size.vision_tokens is None
    builder = model.checkpoint.preparation(config.template) if needed else None
    teacher = _shapes(model, builder)
    data = _data(config, options, teacher, builder, samples)
    if not len(data.rows):
        raise InputError(
            f"{config.data[0].conversations}: not one of the {data.counted} counted samples is usable; "
            "see `alignkd data stats`"
        )
    known = config.student is None or student_shapes is not None
    student = student_shapes if known else shapes_of_student(config)
    return _Inputs(model=model, teacher=teacher, student=student, builder=builder, data=data)


def _data(
    config: RunConfig,
    options: PlanOptions,
    teacher: ModelShapes,
    builder: Preparation | None,
    samples: DataList | None,
) -> DataSize:
    if options.samples is not None:
        return _assumed(config, options, teacher, options.samples)
    if options.image_tokens is not None:
        raise InputError("--image-tokens needs --samples and --mean-tokens: without them the images of the data count")
    assert builder is not None and samples is not None
    if builder.vision_tokens is None:
        _check_sizes_known(config, samples)
    store = config.store
    return count_samples(
        samples,
        builder,
        planned_shards(len(samples), store.shard_size, store.seed, contiguous=samples.is_sequential),
        max_tokens=config.max_tokens,
        at_least=options.count,
        embed=store.inputs == "embed",
    )


def _check_sizes_known(config: RunConfig, samples: DataList) -> None:
    """Refuse images that are not there where the number of vision tokens depends on them."""
    for source, data, given in zip(samples.sources, _readable(config), config.data, strict=True):
        if data.images is None and any(needs_folder(sample) for sample in source.data):
            raise InputError(
                f"{data.path}: has samples with images, whose vision tokens depend on the image files, but "
                f"data.images {given.images} is not a folder; set it, or give --samples and --mean-tokens"
            )


def _assumed(config: RunConfig, options: PlanOptions, teacher: ModelShapes, num_samples: int) -> DataSize:
    """The data set that `--samples`, `--mean-tokens` and `--image-tokens` describe."""
    fixed, given = teacher.size.vision_tokens, options.image_tokens
    if options.mean_tokens is None:
        raise InputError("--samples needs --mean-tokens; give both, or neither and a data set")
    if fixed is not None and given not in (None, fixed):
        raise InputError(f"--image-tokens is {given}, but every image has {fixed} vision tokens; leave it out")
    return assumed_samples(
        num_samples,
        options.mean_tokens,
        shard_size=config.store.shard_size,
        vision_tokens=given or teacher.image.tokens,
        supervised_share=options.supervised_share,
        plain=config.template == "plain",
        expanded_before=None if fixed is not None else teacher.image.tokens_before,
    )


def _student_load(config: RunConfig, inputs: _Inputs, store: StoreSize, devices: int) -> StudentLoad | None:
    assert config.teacher is not None
    if inputs.student is None:
        return None
    depth = stem_depth_of(config, inputs.model.config)
    stem = sizes_of(inputs.model.config, config.teacher, depth) if takes_from_stem(config) else None
    of_stem = {} if stem is None else {"stem_weights": stem.device, "stem_depth": depth}
    size = inputs.student.size
    return student_load(
        config,
        inputs.data,
        store,
        inputs.teacher,
        devices=devices,
        student_layers=size.num_layers,
        student_hidden=size.hidden_size,
        **of_stem,
    )


def _profiles(
    config: RunConfig, inputs: _Inputs, manifest: Manifest, entries: float, files: Mapping[str, int]
) -> dict[str, int]:
    """`bytes_by_profile` of this configuration."""
    assert config.teacher is not None
    depth = max(stem_depth_of(config, inputs.model.config), config.store.stem.depth or 0)
    stem = stem_bytes_on_disk(inputs.model.config, config.teacher, inputs.builder, depth)
    always = {name: size for name, size in files.items() if name != STEM_FILE or config.store.stem.depth is not None}
    return bytes_by_profile(inputs.data, manifest, entries, always, stem)


def _trained(student: ModelShapes, load: StudentLoad) -> TrainedPlan:
    counts, adapters = counts_of(student, load), trained_adapters(student, load)
    return TrainedPlan(
        text=described(load.trained, counts),
        parameters=counts.trained,
        adapters=adapters,
        of=counts.total,
        checkpoint_bytes=CHECKPOINT_BYTES * (counts.trained + adapters),
    )
