"""One training of a random student with micro-batches of equal samples: settings, student, step and planned memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignkd.pipeline.plan.memory.result import Memory
from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.student_train.config import OptimizerName, TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.vlm.families.mobilevlm.model.sizes import family_config
from cases.random_step import Pair

GIB = 1 << 30
# Of an optimiser step: gradients are summed.
MICRO_BATCHES = 2


@dataclass(frozen=True)
class TrainingCase:
    """One training.

    Attributes:
        optimizer: of `train`.
        samples, length: of a micro-batch.
        checkpointing: whether layers are computed again.
    """

    optimizer: OptimizerName
    samples: int
    length: int
    checkpointing: bool = False

    @property
    def name(self) -> str:
        """For a table."""
        return f"{self.optimizer} {self.samples} x {self.length}{', checkpointing' if self.checkpointing else ''}"

    def config(self) -> TrainConfig:
        """Settings of Align-KD; nothing is written into the output."""
        return TrainConfig(
            output=Path("never"),
            steps=1,
            micro_batch=self.samples,
            global_batch=self.samples * MICRO_BATCHES,
            optimizer=self.optimizer,
            gradient_checkpointing=self.checkpointing,
            preset="paper",
        )

    def student(self, pair: Pair, device: str) -> DistilledStudent:
        """A new student with random weights."""
        return pair.new_student(device, checkpointing=self.checkpointing)

    def planned(self, pair: Pair, device: str) -> Memory:
        """What `alignkd plan` predicts."""
        settings = {"optimizer": self.optimizer, "gradient_checkpointing": self.checkpointing, "accumulates": True}
        return student_memory(pair.shapes, pair.load(self.samples, self.length, device, **settings))


def real_pair() -> Pair:
    """The student of 1.7B and the teacher of 7B."""
    student, teacher = (family_config(f"MobileVLM_V2-{size}") for size in ("1.7B", "7B"))
    return Pair(student=student, teacher=teacher, dtype=torch.bfloat16)


def backward(engine: Any, batch: TrainBatch) -> None:
    """Forward and backward pass of one micro-batch."""
    weights = engine.student.losses.weights
    engine.backward(weighted_total(engine(batch), weights, dict.fromkeys(weights, 1000)))
