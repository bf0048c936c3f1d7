"""Finding and loading the teacher of a job."""

from typing import Protocol

from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.kernels.choice import check_kernels


class TeacherJob(Protocol):
    """A job in which a teacher runs."""

    @property
    def teacher(self) -> TeacherConfig:
        """The teacher and how it is run."""

    @property
    def control(self) -> DumpControl:
        """Takes notices for the user."""


def open_teacher(config: TeacherConfig) -> Checkpoint:
    """The teacher's checkpoint, without its weights.

    Raises:
        InputError: no such checkpoint.
    """
    return open_checkpoint(config.checkpoint, vision_config=config.vision_config, processor=config.processor)


def load_teacher(job: TeacherJob, teacher: Checkpoint) -> VisionLanguageModel:
    """The teacher on its device, with the kernels of its settings, after a notice that names the device.

    Raises:
        InputError: as `Checkpoint.load_model` and `VisionLanguageModel.use_kernels`, and where the device cannot
            compute in the teacher's dtype.
    """
    config, device = job.teacher, job.teacher.torch_device
    line, warnings = device_report(device, config.torch_dtype, chosen=config.device is not None)
    for text in (line, *warnings):
        job.control.notice(text)
    check_kernels(config.kernels, device)  # before the weights are read
    model = teacher.load_model(dtype=config.torch_dtype, device=device, quantization=config.quantization)
    if config.kernels != "torch":
        job.control.notice(model.use_kernels(config.kernels))
    return model
