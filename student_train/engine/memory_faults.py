"""Out of memory while training: one line with the settings that need less memory."""

import functools
from collections.abc import Callable
from typing import TypeVar

from alignkd.student_train.config import OptimizerName, TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory, memory_line

R = TypeVar("R")
# Optimisers that take less of the device.
SMALLER: dict[OptimizerName, str] = {
    "adamw": "adamw_8bit or adamw_offload",
    "adamw_8bit": "adamw_offload",
    "adamw_offload": "",
}


def memory_error_as_train_error(train: Callable[[TrainJob], R]) -> Callable[[TrainJob], R]:
    """Turn an out-of-memory error of device or host into a TrainError that names the settings to change."""

    @functools.wraps(train)
    def run(job: TrainJob) -> R:
        try:
            return train(job)
        except (RuntimeError, MemoryError) as error:
            if not may_be_out_of_memory(error):
                raise
            raise TrainError(f"{memory_line(error)}; {_advice(job.train)}") from error

    return run


def _advice(config: TrainConfig) -> str:
    steps = []
    if config.token_budget is not None:
        steps.append(f"lower train.token_budget (now {config.token_budget})")
    elif config.micro_batch is not None and config.micro_batch > 1:
        steps.append(f"lower train.micro_batch (now {config.micro_batch}; set train.global_batch to keep its size)")
    if smaller := SMALLER[config.optimizer]:
        steps.append(f"set train.optimizer to {smaller} (now {config.optimizer})")
    if not config.gradient_checkpointing:
        steps.append("set train.gradient_checkpointing to true")
    return f"{', '.join([*steps, 'or lower data.max_tokens'])}; `alignkd plan CONFIG` shows what fits"
