"""Out of memory while training: one line with the settings that need less memory."""

import functools
from collections.abc import Callable
from typing import TypeVar

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory, memory_line

R = TypeVar("R")


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
    steps += [
        f"set train.{name} to true"
        for name in ("gradient_checkpointing", "offload_optimizer")
        if not getattr(config, name)
    ]
    return f"{', '.join([*steps, 'or lower data.max_tokens'])}; `alignkd plan CONFIG` shows what fits"
