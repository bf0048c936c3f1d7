"""The student's memory for several numbers of devices."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from alignkd.pipeline.plan.memory.loads import StudentLoad
from alignkd.pipeline.plan.memory.shapes import ModelShapes
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.student_train.config import OptimizerName

DEVICE_COUNTS = (1, 2, 4, 8)


def memory_table(student: ModelShapes, load: StudentLoad, device_bytes: int) -> list[Mapping[str, Any]]:
    """The student's memory for 1, 2, 4 and 8 devices, with each optimiser, with and without checkpointing."""
    rows: list[Mapping[str, Any]] = []
    for devices in DEVICE_COUNTS:
        for optimizer in get_args(OptimizerName):
            for checkpointing in (False, True):
                other = replace(load, devices=devices, optimizer=optimizer, gradient_checkpointing=checkpointing)
                memory = student_memory(student, other)
                rows.append({"devices": devices, "optimizer": optimizer, "gradient_checkpointing": checkpointing,
                             "bytes": memory.peak, "host_bytes": memory.host,
                             "fits": memory.fits(device_bytes)})  # fmt: skip
    return rows
