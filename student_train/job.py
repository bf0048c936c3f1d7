"""Input and result of a training run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.trained.settings import TrainedConfig
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.hardware.devices import TORCH_DTYPES, DtypeName
from alignkd.vlm.settings import ProcessorKind


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that decides a training run.

    Attributes:
        student: checkpoint folder or hub id, of any family.
        vision_config: folder with the vision tower's config, overriding the checkpoint's.
        processor: which image processor, see `CheckpointFolder`.
        dtype: dtype of the student's weights; master weights and optimiser state are float32.
        images: folder to which the samples' image paths are relative; None if the store holds the image files.
        template: prompt template, the checkpoint's own if None; must be the store's.
        max_tokens: largest number of embedded tokens of a sample, or None.
        store: the teacher's cached targets, a folder or a URL.
        train: optimisation settings.
        trained: which parameters of the student are trained, LoRA, and precision of the frozen ones.
        configuration: the whole configuration of the run, JSON-able, which is written to `OUTPUT/run.json`; it has no
            effect on training.
    """

    student: str | Path
    store: Path | str
    train: TrainConfig
    images: Path | None = None
    template: str | None = None
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    dtype: DtypeName = "float32"
    max_tokens: int | None = None
    trained: TrainedConfig = field(default_factory=TrainedConfig)
    configuration: Mapping[str, Any] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a torch dtype."""
        return TORCH_DTYPES[self.dtype]

    def open_student(self) -> Checkpoint:
        """The student's checkpoint, found once for the whole run.

        Raises:
            InputError: no such checkpoint.
        """
        return open_checkpoint(self.student, vision_config=self.vision_config, processor=self.processor)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done, resumed ones included.
        samples_seen: samples consumed, resumed ones included.
        samples_by_kind: samples consumed by kind, see `sample_kinds.SampleKinds`.
        quarantined: unusable samples; the store has no targets of them.
        skipped_steps: steps that were skipped because a loss or gradient was not finite.
        metrics: the last line of `metrics.jsonl`.
        student: exported checkpoint folder; None if interrupted.
        adapters: exported adapters; None if interrupted.
        already_finished: an earlier call had finished the run, and nothing was trained.
        interrupted_by: number of the signal that ended the run early, or None. The command exits with 128 + this.
    """

    step: int
    samples_seen: int
    samples_by_kind: dict[str, int]
    quarantined: int
    skipped_steps: int
    metrics: dict[str, float | int | bool | None]
    student: Path | None
    adapters: Path | None
    already_finished: bool = False
    interrupted_by: int | None = None
