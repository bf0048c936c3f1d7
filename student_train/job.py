"""A training run as the pipeline hands it over, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train.config import TrainConfig
from alignkd.vlm.hardware.devices import TORCH_DTYPES, DtypeName
from alignkd.vlm.inputs.templates import TemplateName
from alignkd.vlm.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything that decides a training run.

    Attributes:
        student: checkpoint folder (or hub id) in the official layout.
        vision_config: folder with the vision tower's config, overriding the checkpoint's.
        dtype: of the student's weights; master weights and optimiser state are float32.
        images: folder the samples' image paths are relative to; None where the store holds the image files.
        template: prompt template; must be the store's.
        max_tokens: most embedded tokens of a sample, or None.
        store: the teacher's cached targets, a folder or a URL.
        train: optimisation settings.
        configuration: the whole configuration of the run, JSON-able, which is kept as `OUTPUT/run.json`; decides
            nothing.
    """

    student: str | Path
    store: Path | str
    train: TrainConfig
    images: Path | None = None
    template: TemplateName = "v1"
    vision_config: Path | None = None
    dtype: DtypeName = "float32"
    max_tokens: int | None = None
    configuration: Mapping[str, Any] | None = None

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch names it."""
        return TORCH_DTYPES[self.dtype]

    def open_student(self) -> Checkpoint:
        """The student's checkpoint, found once for the whole run.

        Raises:
            InputError: no such checkpoint.
        """
        return Checkpoint.open(self.student, vision_config=self.vision_config)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done, resumed ones included.
        samples_seen: samples consumed, resumed ones included.
        samples_by_kind: the same by kind, see `sample_kinds.SampleKinds`.
        quarantined: samples that the teacher could not use; the store holds nothing of them.
        skipped_steps: steps that were skipped because a loss or gradient was not finite.
        metrics: the last line of `metrics.jsonl`.
        student: exported checkpoint folder, None when interrupted.
        adapters: exported adapters, None when interrupted.
        already_finished: nothing was trained, an earlier run had finished.
        interrupted_by: number of the signal that ended the run early, or None. A command exits with 128 + this.
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
