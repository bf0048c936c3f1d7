"""A training without memory ends with one line that names the settings which take less."""

import re
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch

from alignkd.student_train import trainer
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.engine.memory_faults import memory_error_as_train_error
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob


@dataclass
class Job:
    train: TrainConfig


def run(error: BaseException, **settings: Any) -> None:
    @memory_error_as_train_error
    def train(job: TrainJob) -> None:
        raise error

    train(cast(TrainJob, Job(TrainConfig.model_validate({"output": "out", "steps": 1, **settings}))))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED"),
        MemoryError(),
    ],
)
def test_the_line_names_what_is_not_set_yet(error: BaseException) -> None:
    with pytest.raises(TrainError) as stopped:
        run(error, micro_batch=4, optimizer="adamw_8bit")
    message = str(stopped.value)
    assert (
        re.search("out of (host )?memory", message)
        and "lower train.micro_batch (now 4;" in message
        and "\n" not in message
    )
    assert "set train.gradient_checkpointing to true" in message
    assert "set train.optimizer to adamw_offload (now adamw_8bit)" in message
    assert message.endswith("`alignkd plan CONFIG` shows what fits")
    with pytest.raises(
        TrainError, match=r"(\)|memory); set train\.optimizer to adamw_8bit or adamw_offload \(now adamw\)"
    ):
        run(error, micro_batch=1)
    with pytest.raises(TrainError, match=r"; lower train\.token_budget \(now 8192\), set train\.optimizer"):
        run(error, token_budget=8192, global_batch=4)
    with pytest.raises(TrainError) as stopped:
        run(error, optimizer="adamw_offload")
    assert "train.optimizer" not in str(stopped.value)


def test_other_errors_pass_and_training_is_covered() -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert hasattr(trainer.train, "__wrapped__")
