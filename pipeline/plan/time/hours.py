"""Hours of both phases on one device of each kind.

`TEACHER_SHARE` and `STUDENT_SHARE` are the shares of a data sheet's rate that the phases are assumed to reach. They
are assumptions; only a probe measures.
"""

import math
from collections.abc import Mapping

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import takes_from_stem
from alignkd.pipeline.plan.disk.counterfactual import has_second_pass
from alignkd.pipeline.plan.disk.samples import DataSize
from alignkd.pipeline.plan.memory.micro_batch import may_accumulate
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import weight_gradient_share
from alignkd.pipeline.plan.time.devices import DEVICES, Device
from alignkd.pipeline.plan.time.operations import forward_flops, stem_flops, training_flops
from alignkd.student_train.run.extension import steps_done
from alignkd.student_train.validation_config import ValidationConfig

TEACHER_SHARE = 0.45
STUDENT_SHARE = 0.35
# share of the 16-bit rate that a quantised decoder reaches: its weights are expanded before every product
QUANTISED_SHARE = {"none": 1.0, "int8": 0.5, "nf4": 0.7}


def hours_by_device(
    config: RunConfig,
    data: DataSize,
    teacher: ModelShapes,
    student: ModelShapes | None,
    *,
    stem_depth: int,
    padding: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Device -> phase -> hours on one such device, by arithmetic.

    Args:
        stem_depth: depth of the stem, if training takes targets from one.
        padding: padded / real positions of the phases `dump` and `train`.
    """
    assert config.teacher is not None
    shape = _sample_shape(data, padding["dump"])
    dump = forward_flops(teacher, **shape) * data.num_records
    if config.store.counterfactual is not None:
        dump += _second_pass(teacher, shape) * float((data.rows.images > 0).mean()) * data.num_records
    share = TEACHER_SHARE * QUANTISED_SHARE[config.teacher.quantization]
    found = {name: {"dump": hours(dump, device, share)} for name, device in DEVICES.items()}
    if student is not None and config.train is not None:
        training = _of_data(config, data, teacher, student, stem_depth, padding["train"])
        for name, device in DEVICES.items():
            found[name]["train"] = training_hours(config, training, device)
    return found


def hours(flops: float, device: Device, share: float, devices: int = 1) -> float:
    """Wall time on that many devices that reach `share` of their rate."""
    return flops / (device.teraflops * 1e12 * share * devices) / 3600


def _sample_shape(data: DataSize, padding: float) -> dict[str, float]:
    """An average sample, padded."""
    return {
        "tokens": padding * data.mean("length"),
        "images": data.mean("images"),
        "supervised": data.mean("supervised"),
        "vision": data.mean("vision"),
    }


def training_operations(
    config: RunConfig,
    student: ModelShapes,
    shape: Mapping[str, float],
    *,
    per_pass: int,
    held_out: float,
    stem: float,
    measured: float = 0,
) -> float:
    """Operations of the whole training, validations included; samples of a validation are taken to be average.

    Of an extension, the added steps count. If the run that it extends has no state yet, all steps count.

    Args:
        shape: `tokens`, padding included, `images`, `supervised` and `vision` of an average sample.
        per_pass: samples of one pass over the data, without those that are held out.
        held_out: samples that `validation.share` holds out.
        stem: operations per sample that compute targets from the stem.
        measured: samples that measure the weights of domains.
    """
    assert config.train is not None and config.student is not None
    train = config.train
    done = 0 if train.extend is None else steps_done(train.extend.run)
    steps = max(0, train.optimiser_steps(per_pass, 1) - done)
    step = stem + training_flops(
        student,
        gradient_checkpointing=train.gradient_checkpointing,
        weight_gradients=weight_gradient_share(student, config.student.trained_config),
        **shape,
    )
    if train.preference == "kto_pair" and may_accumulate(train, 1):  # the means over the global batch come first
        step += forward_flops(student, **shape)
    if has_second_pass(train.losses):  # of the whole batch; the head runs again over the first pass, too
        step += training_flops(
            student,
            tokens=shape["tokens"],
            images=0,
            supervised=2 * shape["supervised"],
            gradient_checkpointing=train.gradient_checkpointing,
            weight_gradients=weight_gradient_share(student, config.student.trained_config),
        )
    if train.losses.needs_teacher_head:  # the heads of both models at the vision positions
        D, V = student.size.hidden_size, student.size.vocab_size
        step += (2 + 4 + 2) * D * V * shape["vision"]
    # a pair of answers counts as one sample of the batch
    total = step * steps * train.global_batch_size(1) * (2 if train.in_pairs else 1)
    if train.domain_weights is not None:
        total += measured * math.ceil(steps / train.domain_weights.interval) * forward_flops(student, **shape)
    if train.validation is None or not steps:
        return total
    samples = train.validation.validations(steps) * _validated(train.validation, held_out)
    return total + samples * (forward_flops(student, **shape) + stem)


def _second_pass(teacher: ModelShapes, shape: Mapping[str, float]) -> float:
    """Operations of a sample's counterfactual pass; images of one size share one neutral image."""
    images = shape["images"] if teacher.size.vision_tokens is None else 0
    # the head runs again over the first pass: both are compared in one chunk
    return forward_flops(teacher, **{**shape, "images": images, "supervised": 2 * shape["supervised"]})


def training_hours(config: RunConfig, operations: float, device: Device) -> float:
    """Hours of so many operations of the training on one device."""
    assert config.student is not None
    return hours(operations, device, STUDENT_SHARE * QUANTISED_SHARE[config.student.quantization])


def _of_data(
    config: RunConfig, data: DataSize, teacher: ModelShapes, student: ModelShapes, stem_depth: int, padding: float
) -> float:
    """`training_operations` of a store that holds these data."""
    assert config.train is not None
    shape, stem = _sample_shape(data, padding), 0.0
    share = (config.train.validation.share if config.train.validation else None) or 0.0
    if takes_from_stem(config):
        of_sample = {name: shape[name] for name in ("tokens", "images", "vision")}
        stem = stem_flops(teacher, depth=stem_depth, **of_sample)
    measured = 0
    if (weights := config.train.domain_weights) is not None:
        measured = sum(weights.measured_of(round(source.num_samples * (1 - share))) for source in data.sources)
    units = _per_pass(config, data) * (1 - share) / (2 if config.train.in_pairs else 1)
    per_pass = max(1, round(units) - measured)
    held_out = share * data.num_records
    return training_operations(
        config, student, shape, per_pass=per_pass, held_out=held_out, stem=stem, measured=measured
    )


def _per_pass(config: RunConfig, data: DataSize) -> float:
    """Samples of one pass: those of each data set as often as its weight demands."""
    weights = config.train_job().source_weights
    if not weights:
        return data.num_records
    return sum(
        weights.get(source.name, 1.0) * source.num_samples * (1 - source.unusable / max(1, source.counted))
        for source in data.sources
    )


def _validated(validation: ValidationConfig, held_out: float) -> float:
    """Samples of one validation; the size of another store or of data is not known, but for `max_samples`."""
    most = math.inf if validation.max_samples is None else validation.max_samples
    if validation.share is not None:
        return min(most, held_out)
    return 0 if most == math.inf else most
