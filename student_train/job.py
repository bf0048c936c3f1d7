"""Input and result of a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.stores import TrainStore, checked_stores
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
        images_of: folder of images by name of a source of the stores, in place of `images`.
        template: prompt template, the checkpoint's own if None; must be the store's.
        max_tokens: largest number of embedded tokens of a sample, or None.
        store: the teacher's cached targets, a folder or a URL; or several stores with their weights.
        source_weights: how often samples of a source are seen per pass, by name of the source, times the weight of
            their store; 1 for all others.
        train: optimisation settings.
        trained: which parameters of the student are trained, LoRA, and precision of the frozen ones.
        configuration: the whole configuration of the run, JSON-able, which is written to `OUTPUT/run.json`; it has no
            effect on training.
    """

    student: str | Path
    store: Path | str | Sequence[TrainStore]
    train: TrainConfig
    images: Path | None = None
    template: str | None = None
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    dtype: DtypeName = "float32"
    max_tokens: int | None = None
    trained: TrainedConfig = field(default_factory=TrainedConfig)
    configuration: Mapping[str, Any] | None = None
    images_of: Mapping[str, Path | None] = field(default_factory=dict)
    source_weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def stores(self) -> tuple[TrainStore, ...]:
        """The stores, at least one.

        Raises:
            TrainError: one line with every problem of a list.
        """
        return checked_stores(self.store)

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
class ValidationOutcome:
    """What the validations of a finished run led to.

    Attributes:
        figure: the figure that chooses the best state.
        best_step, best: the step with its lowest value, and the value; None if it was finite in no validation.
        last: its value after the last step; None if it was not finite.
        exported_step: the step whose state is the exported student.
        stopped_early: why the run ended before its last step, or None.
    """

    figure: str
    best_step: int | None
    best: float | None
    last: float | None
    exported_step: int
    stopped_early: str | None


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done, resumed ones included.
        samples_seen: samples consumed, resumed ones included.
        samples_by_kind: samples consumed by kind, see `sample_kinds.SampleKinds`.
        samples_by_source: samples consumed by source; {} if the run has one.
        quarantined: unusable samples; the store has no targets of them.
        skipped_steps: steps that were skipped because a loss or gradient was not finite.
        metrics: the last line of `metrics.jsonl`.
        student: exported checkpoint folder; None if interrupted.
        adapters: exported adapters; None if interrupted.
        already_finished: an earlier call had finished the run, and nothing was trained.
        interrupted_by: number of the signal that ended the run early, or None. The command exits with 128 + this.
        validation: None if interrupted, and for a run without validation.
    """

    step: int
    samples_seen: int
    samples_by_kind: dict[str, int]
    quarantined: int
    skipped_steps: int
    metrics: dict[str, Any]
    student: Path | None
    adapters: Path | None
    already_finished: bool = False
    interrupted_by: int | None = None
    samples_by_source: dict[str, int] = field(default_factory=dict)
    validation: ValidationOutcome | None = None
