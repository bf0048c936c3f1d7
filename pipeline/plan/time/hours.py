"""Hours of both phases on one device of each kind.

`TEACHER_SHARE` and `STUDENT_SHARE` are the shares of a data sheet's rate that the phases are assumed to reach. They
are assumptions; only a probe measures.
"""

import math

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.stem_use import takes_from_stem
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.trained import weight_gradient_share
from alignkd.pipeline.plan.samples import DataSize
from alignkd.pipeline.plan.time.devices import DEVICES, Device
from alignkd.pipeline.plan.time.operations import forward_flops, stem_flops, training_flops
from alignkd.student_train.validation_config import ValidationConfig

TEACHER_SHARE = 0.45
STUDENT_SHARE = 0.35
# share of the 16-bit rate that a quantised decoder reaches: its weights are expanded before every product
QUANTISED_SHARE = {"none": 1.0, "int8": 0.5, "nf4": 0.7}


def hours_by_device(
    config: RunConfig, data: DataSize, teacher: ModelShapes, student: ModelShapes | None
) -> dict[str, dict[str, float]]:
    """Device -> phase -> hours on one such device, by arithmetic."""
    assert config.teacher is not None
    dump = forward_flops(teacher, **_sample_shape(data)) * data.num_records
    share = TEACHER_SHARE * QUANTISED_SHARE[config.teacher.quantization]
    found = {name: {"dump": hours(dump, device, share)} for name, device in DEVICES.items()}
    if student is not None and config.train is not None:
        training = _training_flops(config, data, teacher, student)
        assert config.student is not None
        share = STUDENT_SHARE * QUANTISED_SHARE[config.student.quantization]
        for name, device in DEVICES.items():
            found[name]["train"] = hours(training, device, share)
    return found


def hours(flops: float, device: Device, share: float, devices: int = 1) -> float:
    """Wall time on that many devices that reach `share` of their rate."""
    return flops / (device.teraflops * 1e12 * share * devices) / 3600


def _sample_shape(data: DataSize) -> dict[str, float]:
    return {
        "tokens": data.mean("length"),
        "images": data.mean("images"),
        "supervised": data.mean("supervised"),
        "vision": data.mean("vision"),
    }


def _training_flops(config: RunConfig, data: DataSize, teacher: ModelShapes, student: ModelShapes) -> float:
    """Operations of the whole training, validations included; samples of a validation are taken to be average."""
    assert config.train is not None and config.student is not None
    train, shape = config.train, _sample_shape(data)
    share = (train.validation.share if train.validation else None) or 0.0
    steps = train.optimiser_steps(max(1, round(data.num_records * (1 - share))), 1)
    validated = forward_flops(student, **shape)
    step = training_flops(
        student,
        gradient_checkpointing=train.gradient_checkpointing,
        weight_gradients=weight_gradient_share(student, config.student.trained_config),
        **shape,
    )
    if takes_from_stem(config):
        stem = stem_flops(teacher, tokens=shape["tokens"], images=shape["images"], vision=shape["vision"])
        step += stem
        validated += stem
    validations = train.validation.validations(steps) * _validated(train.validation, data) if train.validation else 0
    return step * steps * train.global_batch_size(1) + validated * validations


def _validated(validation: ValidationConfig, data: DataSize) -> float:
    """Samples of one validation; the size of another store or of data is not known, but for `max_samples`."""
    most = math.inf if validation.max_samples is None else validation.max_samples
    if validation.share is not None:
        return min(most, validation.share * data.num_records)
    return 0 if most == math.inf else most
