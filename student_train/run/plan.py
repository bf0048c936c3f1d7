"""What a run will do, decided before its first step: samples in their order, learning rate, deciding settings."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.dataset import CachedDataset
from alignkd.student_train.data.loader import load_micro_batches
from alignkd.student_train.data.sample_kinds import SampleKinds
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.schedule import learning_rate_factor
from alignkd.student_train.job import TrainJob, TrainResult
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.output import adapters_file, student_folder
from alignkd.student_train.run.checkpoint import TrainState
from alignkd.student_train.run.checks import check_images, check_store_fits
from alignkd.student_train.run.settings import deciding_settings
from alignkd.student_train.run.target_sources import stem_lookup, stem_of_run
from alignkd.student_train.trained.checks import check_trained
from alignkd.vlm.families.family import Checkpoint


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimiser step before it is done.

    Attributes:
        positions: store positions of its global batch, int64.
        factor: share of the peak learning rates.
        learning_rate: learning rate of the decoder.
        tokens: tokens of the global batch, padding left out.
        kinds: samples of the global batch by kind.
    """

    positions: NDArray[np.int64]
    factor: float
    learning_rate: float
    tokens: int
    kinds: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run before its first step.

    Attributes:
        job: the job, its length given in steps.
        requested_epochs: `train.epochs` as the user gave it, or None.
        student: the checkpoint that the student starts from.
        ranks: this process among all.
        dataset: the store's samples as the student reads them.
        order: which samples each step takes.
        kinds: counts samples by kind.
        settings: what decides the run's weights; a resumed run must have the same.
    """

    job: TrainJob
    requested_epochs: float | None
    student: Checkpoint
    ranks: Ranks
    dataset: CachedDataset
    order: SampleOrder
    kinds: SampleKinds
    settings: dict[str, Any]

    @property
    def config(self) -> TrainConfig:
        """The optimisation settings, their length in steps."""
        return self.job.train

    @property
    def reader(self) -> StoreReader:
        """The store."""
        return self.dataset.reader

    def step(self, number: int) -> StepPlan:
        """The optimiser step of this number, from 0."""
        config, positions = self.config, self.order.global_batch_indices(number)
        factor = learning_rate_factor(number, steps=config.num_steps, warmup_ratio=config.warmup_ratio)
        return StepPlan(
            positions=positions,
            factor=factor,
            learning_rate=config.learning_rate * factor,
            tokens=self.kinds.tokens(positions),
            kinds=self.kinds(positions),
        )

    def micro_batches(self, *, first_step: int) -> Iterator[TrainBatch]:
        """This rank's micro-batches from a step to the last one; forks data workers, see `load_micro_batches`."""
        stem = stem_lookup(self.reader, self.config)
        return micro_batches(self.dataset, self.order, self.config, self.ranks, first_step=first_step, stem=stem)

    def result(
        self, state: TrainState, metrics: Metrics, *, already_finished: bool = False, interrupted_by: int | None = None
    ) -> TrainResult:
        """The result of the run that ended in `state`."""
        output = self.config.output
        return TrainResult(
            step=state.step,
            samples_seen=state.samples_seen,
            samples_by_kind=self.kinds.up_to(state.step, self.order),
            quarantined=len(self.reader.quarantined),
            skipped_steps=state.skipped_steps,
            metrics=metrics,
            student=student_folder(output) if interrupted_by is None else None,
            adapters=adapters_file(output) if interrupted_by is None else None,
            already_finished=already_finished,
            interrupted_by=interrupted_by,
        )


def plan_run(job: TrainJob, ranks: Ranks) -> RunPlan:
    """Open the store, check that store, student and settings fit together, and plan the run.

    Raises:
        ValueError: one line about what does not fit.
    """
    student, epochs = job.open_student(), job.train.epochs
    check_trained(job.trained, student, job.train.losses.weights)
    dataset = open_dataset(job, student)
    job = replace(job, train=job.train.in_steps(len(dataset), ranks.world_size))
    return RunPlan(
        job=job,
        requested_epochs=epochs,
        student=student,
        ranks=ranks,
        dataset=dataset,
        order=SampleOrder(len(dataset), job.train.seed, job.train.global_batch_size(ranks.world_size)),
        kinds=SampleKinds(dataset.reader, dataset.preparation.vision_tokens),
        settings=deciding_settings(job, student, dataset.reader, ranks),
    )


def open_dataset(job: TrainJob, student: Checkpoint) -> CachedDataset:
    """The store as this job's student reads it, after every check that needs no weights."""
    reader = StoreReader(job.store)
    preparation = student.preparation(job.template, max_tokens=job.max_tokens)
    check_store_fits(reader, preparation, student.config, job.train.losses)
    stem_of_run(reader, job.train)
    check_images(reader, job.images)
    return CachedDataset(reader, preparation, job.images)


def micro_batches(
    dataset: CachedDataset,
    order: SampleOrder,
    config: TrainConfig,
    ranks: Ranks,
    *,
    first_step: int,
    stem: StemLookup | None = None,
) -> Iterator[TrainBatch]:
    """`load_micro_batches` as the settings of a run ask for them, from `first_step` to the last step."""
    return load_micro_batches(
        dataset,
        order,
        ranks,
        steps=range(first_step, config.num_steps),
        micro_batch=config.micro_batch,
        targets={*config.losses.needed_targets.values()},
        stem=stem,
        workers=config.data_workers,
    )
