"""What a run will do, decided before its first step: samples in their order, learning rate, deciding settings."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.checkpoints.checkpoint import TrainState
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.attention_source import ChosenAttention
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.division import Division, Divisions
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.data.loader import load_micro_batches
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.held_out import held_out_positions
from alignkd.student_train.data.samples.pairs import PairedOrder, not_drawn
from alignkd.student_train.data.samples.sample_kinds import SampleKinds
from alignkd.student_train.data.samples.sources import Sources
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.data.stem_targets import StemLookup
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.engine.build import check_optimizer
from alignkd.student_train.engine.schedule import Schedule
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob, TrainResult, ValidationOutcome
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.metrics.trackers.installed import check_installed
from alignkd.student_train.objective.attention.layer_map import compared_layers
from alignkd.student_train.objective.attention.match import AttentionMatch
from alignkd.student_train.objective.logits.group_sizes import GroupSizes
from alignkd.student_train.objective.source_sums import StepSources
from alignkd.student_train.output import adapters_file, student_folder
from alignkd.student_train.run.attention.chosen import attention_match, chosen_attention
from alignkd.student_train.run.checks.agreement import check_same_stores, check_stores_agree
from alignkd.student_train.run.checks.fit import check_images, check_store_fits
from alignkd.student_train.run.checks.target_sources import stem_lookup, stem_of_run, targets_by_term
from alignkd.student_train.run.extension import (
    Extension,
    check_can_be_extended,
    find_extension,
    first_run_steps,
    schedule_of,
)
from alignkd.student_train.run.mixture import Mixture
from alignkd.student_train.run.settings import deciding_settings
from alignkd.student_train.trained.checks import check_trained
from alignkd.vlm.families.family import Checkpoint


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimiser step before it is done.

    Attributes:
        positions: store positions of its global batch, int64.
        division: these positions by rank and micro-batch.
        factor: share of the peak learning rates.
        learning_rate: learning rate of the decoder.
        tokens: tokens of the global batch, padding left out.
        kinds: samples of the global batch by kind.
        weights: weight of each loss term.
        attention_weight: that of the attention loss if it changes with the step, else None.
        domain_weights: weight of each domain by its name, if they follow the student; otherwise {}.
        group_sizes: positions of the high and of the low group of the logit loss in the global batch; None without
            groups.
    """

    positions: NDArray[np.int64]
    division: Division
    factor: float
    weights: dict[str, float]
    attention_weight: float | None
    learning_rate: float
    tokens: int
    kinds: dict[str, int]
    domain_weights: dict[str, float]
    group_sizes: tuple[int, int] | None


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """A run before its first step.

    Attributes:
        job: the job, its length given in steps.
        requested_epochs: `train.epochs` as the user gave it, or None.
        student: the checkpoint that the student starts from.
        ranks: this process among all.
        samples: the samples of the run's stores as the student reads them.
        mixture: how often each sample is seen per pass.
        order: which samples each step takes.
        divisions: which of them each micro-batch has.
        held_out: positions of the samples that validation holds out of training, int64; may be empty.
        kinds: counts samples by kind.
        sources: counts samples by source.
        settings: what decides the run's weights; a resumed run must have the same.
        extension: where it begins if it extends an earlier run, or None.
        schedule: learning rate of each step.
        attention: how attention is compared; None for a run that does not.
        group_sizes: counts the positions of both groups of the logit loss; None for a run without groups.
    """

    job: TrainJob
    requested_epochs: float | None
    student: Checkpoint
    ranks: Ranks
    samples: TrainingSet
    mixture: Mixture
    order: SampleOrder
    divisions: Divisions
    held_out: NDArray[np.int64]
    kinds: SampleKinds
    sources: Sources
    settings: dict[str, Any]
    extension: Extension | None
    schedule: Schedule
    attention: AttentionMatch | None
    group_sizes: GroupSizes | None

    @property
    def config(self) -> TrainConfig:
        """The optimisation settings, their length in steps."""
        return self.job.train

    @property
    def layers_of_attention(self) -> tuple[int, ...]:
        """The student's layers whose attention is compared, if there are several; otherwise ()."""
        layers = () if self.attention is None else self.attention.student_layers
        return layers if len(layers) > 1 else ()

    @property
    def first_step(self) -> int:
        """Optimiser steps before the run: those of the run that it extends."""
        return 0 if self.extension is None else self.extension.first_step

    @property
    def reader(self) -> StoreReader:
        """The first store; see `TrainingSet.reader`."""
        return self.samples.reader

    def step(self, number: int) -> StepPlan:
        """The optimiser step of this number, from 0."""
        config, positions = self.config, self.order.global_batch_indices(number)
        factor = self.schedule(number)
        weights = config.losses.weights_at(number / first_run_steps(self.settings))
        return StepPlan(
            weights=weights,
            attention_weight=None if config.losses.attention_decay is None else weights.get("attention"),
            positions=positions,
            division=self.divisions.of_step(number),
            factor=factor,
            learning_rate=config.learning_rate * factor,
            tokens=self.kinds.tokens(positions),
            kinds=self.kinds(positions),
            domain_weights=self._domain_weights(number),
            group_sizes=None if self.group_sizes is None else self.group_sizes(positions),
        )

    def _domain_weights(self, step: int) -> dict[str, float]:
        if not isinstance(self.order, DomainOrder):
            return {}
        names = (portion.name for portion in self.mixture.portions)
        return dict(zip(names, self.order.weights_of(step), strict=True))

    def step_sources(
        self, step: StepPlan, counts: Callable[[NDArray[np.int64]], Mapping[str, int]]
    ) -> StepSources | None:
        """The sources of a step's samples; None if the run has one.

        Args:
            counts: elements of each loss term over some positions.
        """
        if len(self.sources) == 1:
            return None
        positions, mine = step.positions, np.concatenate(step.division.of_rank(self.ranks.rank))
        of_sample = self.sources.of_sample[positions]
        return StepSources(
            samples=self.sources(positions),
            counts={name: counts(positions[of_sample == number]) for number, name in enumerate(self.sources.names)},
            mine=self.sources.of_sample[mine],
        )

    def micro_batches(self, *, first_step: int) -> Iterator[TrainBatch]:
        """This rank's micro-batches from a step to the last one; forks data workers, see `load_micro_batches`."""
        return micro_batches(
            self.samples,
            self.divisions,
            self.config,
            self.ranks,
            first_step=first_step,
            stem=stem_lookup(self.reader, self.config),
            attention=chosen_attention(self.reader, self.attention),
        )

    def result(
        self,
        state: TrainState,
        metrics: Metrics,
        *,
        already_finished: bool = False,
        interrupted_by: int | None = None,
        validation: ValidationOutcome | None = None,
    ) -> TrainResult:
        """The result of the run that ended in `state`."""
        output = self.config.output
        return TrainResult(
            step=state.step,
            samples_seen=state.samples_seen,
            samples_by_kind=self.kinds.up_to(state.step, self.order),
            samples_by_source=self.sources.up_to(state.step, self.order) if len(self.sources) > 1 else {},
            quarantined=sum(len(reader.quarantined) for reader in self.samples.readers),
            skipped_steps=state.skipped_steps,
            metrics=metrics,
            student=student_folder(output) if interrupted_by is None else None,
            adapters=adapters_file(output) if interrupted_by is None else None,
            already_finished=already_finished,
            interrupted_by=interrupted_by,
            validation=validation,
        )


def plan_run(job: TrainJob, ranks: Ranks) -> RunPlan:
    """Open the stores, check that stores, student and settings fit together, and plan the run.

    Raises:
        ValueError: one line about what does not fit.
    """
    check_optimizer(job.train)
    ranks.on_first(lambda: check_installed(job.train.report_to))  # no other rank reports
    student, epochs = job.open_student(), job.train.epochs
    losses = job.train.losses
    lowest = min(compared_layers(losses.attention_layers, student.config))
    check_trained(job.trained, student, losses.weights, attention_layer=lowest)
    samples = open_samples(job, student)
    check_same_stores(samples.readers, ranks)
    held_out = held_out_positions(samples, job.train.validation.share if job.train.validation else None)
    stores = job.stores
    if job.train.in_pairs:
        _check_has_pairs(samples, job.train)
    unpaired = not_drawn(samples.readers, held_out, in_pairs=job.train.in_pairs)
    mixture = Mixture.of(
        stores, samples.readers, job.source_weights, held_out=unpaired, domain_weights=job.train.domain_weights
    )
    job = replace(job, train=job.train.in_steps(mixture.per_pass, ranks.world_size))
    settings = deciding_settings(job, student, samples.readers, mixture, ranks)
    if (extension := find_extension(job.train, ranks)) is not None:
        settings |= extension.settings
        check_can_be_extended(extension, job.train, settings)
    order = mixture.order(job.train.seed, job.train.global_batch_size(ranks.world_size))
    pairs = samples.pairs if job.train.in_pairs else None
    if pairs is not None:
        order = PairedOrder(order, pairs)
    return RunPlan(
        job=job,
        requested_epochs=epochs,
        student=student,
        ranks=ranks,
        samples=samples,
        mixture=mixture,
        order=order,
        divisions=Divisions(order, samples.lengths, job.train.micro_batch_limit, ranks.world_size, pairs),
        held_out=held_out,
        kinds=SampleKinds(samples.readers, samples.preparation.vision_tokens),
        sources=Sources.of_stores([store.shown_name for store in stores], samples.readers),
        settings=settings,
        extension=extension,
        schedule=schedule_of(settings),
        attention=attention_match(samples.reader, student.config, job.train),
        group_sizes=None if losses.high_share is None else GroupSizes(samples.readers, losses.high_share),
    )


def _check_has_pairs(samples: TrainingSet, config: TrainConfig) -> None:
    if samples.pairs is None or not samples.pairs.has_partner.any():
        stores = ", ".join(str(reader.path) for reader in samples.readers)
        raise TrainError(
            f"train.preference is {config.preference!r}, but store {stores} has no pair of a chosen and a rejected "
            "answer; dump data with data.pairs true, or set train.preference to none and losses.preference to 0"
        )


def open_samples(job: TrainJob, student: Checkpoint) -> TrainingSet:
    """The stores as this job's student reads them, after every check that needs no weights."""
    readers = [StoreReader(store.path) for store in job.stores]
    preparation = student.preparation(job.template, max_tokens=job.max_tokens)
    for reader in readers:
        check_store_fits(reader, preparation, student.config, job.train.losses)
        check_images(reader, job.images, job.images_of)
    check_stores_agree(readers, job.train)
    for reader in readers:
        stem_of_run(reader, job.train)
    weighs = job.train.losses.weighs_generated
    return TrainingSet(
        [CachedDataset(reader, preparation, job.images, job.images_of, marks_generated=weighs) for reader in readers]
    )


def micro_batches(
    samples: TrainingSet,
    divisions: Divisions,
    config: TrainConfig,
    ranks: Ranks,
    *,
    first_step: int,
    stem: StemLookup | None = None,
    attention: ChosenAttention | None = None,
) -> Iterator[TrainBatch]:
    """`load_micro_batches` as the settings of a run ask for them, from `first_step` to the last step."""
    return load_micro_batches(
        samples,
        divisions,
        ranks,
        steps=range(first_step, config.num_steps),
        targets={*targets_by_term(samples.reader.manifest, config.losses).values()},
        stem=stem,
        attention=attention,
        pairs=samples.pairs,
        workers=config.data_workers,
        high_share=config.losses.high_share,
    )
