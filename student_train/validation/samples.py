"""The samples that are validated: those of a store, or conversations without targets."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.storage.schema.order import permutation
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.collate import collate_inputs
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.samples.held_out import fixed_subset
from alignkd.student_train.data.samples.pairs import paired_list, unit_starts
from alignkd.student_train.data.samples.training_set import TrainingSet
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.attention.chosen import chosen_attention
from alignkd.student_train.run.checks.agreement import check_stores_agree
from alignkd.student_train.run.checks.fit import check_images, check_store_fits
from alignkd.student_train.run.checks.target_sources import stem_lookup, stem_of_run, targets_by_term
from alignkd.student_train.run.plan import RunPlan
from alignkd.student_train.validation_config import ValidationConfig, ValidationData, terms_without_teacher
from alignkd.vlm.data.data_list import needs_folder
from alignkd.vlm.data.images import image_files
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import DataSource
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Example, Preparation

logger = logging.getLogger(__name__)
LISTED = 5
# length of a sample without a limit: with a token budget it is alone
UNLIMITED = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A sample without targets that cannot be used."""

    name: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Some samples as a batch; None if none of them can be used."""

    batch: TrainBatch | None
    unusable: tuple[Unusable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ValidationSamples:
    """The samples that every validation of a run computes.

    Attributes:
        described: for the log.
        identity: equal for equal samples; compared when a run is resumed.
        losses: the terms that are computed, and their settings.
        positions: which samples, int64.
        lengths: embedded tokens of each of them, int64; the most that they may have if they are not known.
        prepare: makes a batch of the samples at some positions; raises TrainError.
        has_targets: whether the teacher's targets are there.
        starts: see `Division`; None: every sample is one unit.
    """

    described: str
    identity: str
    losses: LossConfig
    positions: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prepare: Callable[[NDArray[np.int64]], Prepared] = field(repr=False)
    has_targets: bool = True
    starts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.positions)


def open_validation_samples(plan: RunPlan, config: ValidationConfig) -> ValidationSamples:
    """The samples that a run validates; no weights are needed.

    Raises:
        ValueError: one line: a store or data set that cannot be read, does not fit, or has no usable sample.
    """
    if config.data is not None:
        return _raw(plan, config, config.data)
    if config.store is not None:
        return _of_store(plan, config)
    positions = fixed_subset(plan.samples, plan.held_out, config.max_samples)
    described = f"{_count(positions, plan.held_out)} held out of training (share {config.share:g})"
    return _stored(plan, plan.samples, positions, described=described, identity="the run's own")


def _of_store(plan: RunPlan, config: ValidationConfig) -> ValidationSamples:
    assert config.store is not None
    reader = StoreReader(config.store)
    preparation, images = plan.samples.preparation, config.images or plan.job.images
    images_of = plan.job.images_of if config.images is None else {}
    check_store_fits(reader, preparation, plan.student.config, plan.config.losses)
    _check_agrees(reader, plan)
    stem_of_run(reader, plan.config)
    check_images(reader, images, images_of)
    samples = TrainingSet([CachedDataset(reader, preparation, images, images_of)])
    _warn_about_trained(plan, reader)
    every = np.arange(len(samples))
    positions = fixed_subset(samples, every, config.max_samples)
    identity = f"store {reader.manifest.whole_hash[:16]} of {len(reader)} samples"
    return _stored(
        plan, samples, positions, described=f"{_count(positions, every)} of store {reader.path}", identity=identity
    )


def _warn_about_trained(plan: RunPlan, reader: StoreReader) -> None:
    """Samples that are also trained on make the figures too low, and the best state comes too late."""
    trained = np.concatenate([one.keys.first_words for one in plan.samples.readers])
    number = int(np.isin(reader.keys.first_words, trained).sum())
    if number and plan.ranks.is_first:
        logger.warning(
            "validation: %d of %d samples of store %s are also trained on; their losses do not show how well the "
            "student generalises; use train.validation.share, or a store of other samples",
            number,
            len(reader),
            reader.path,
        )


def _check_agrees(reader: StoreReader, plan: RunPlan) -> None:
    """Refuse a store whose targets are not those of the run's store: the terms would have another meaning."""
    try:
        check_stores_agree([plan.reader, reader], plan.config)
    except TrainError as error:
        raise TrainError(f"train.validation.store: {error}, or give train.validation.data") from error


def _stored(
    plan: RunPlan, samples: TrainingSet, positions: NDArray[np.int64], *, described: str, identity: str
) -> ValidationSamples:
    losses = plan.config.losses.for_validation
    load = partial(
        load_batch,
        samples,
        targets={*targets_by_term(samples.reader.manifest, losses).values()},
        stem=stem_lookup(samples.reader, plan.config),
        attention=chosen_attention(samples.reader, plan.attention),
        pairs=samples.pairs,
    )
    pairs = samples.pairs if plan.config.in_pairs else None
    if pairs is not None:
        positions = paired_list(positions, pairs)
    return ValidationSamples(
        described=described,
        identity=identity,
        losses=losses,
        positions=positions,
        lengths=samples.lengths[positions],
        prepare=lambda chosen: Prepared(batch=load(chosen) if len(chosen) else None),
        starts=None if pairs is None else unit_starts(positions, pairs),
    )


def _raw(plan: RunPlan, config: ValidationConfig, data: ValidationData) -> ValidationSamples:
    source = open_data(data.data_set(plan.job.images))
    preparation = plan.student.preparation(data.template or plan.job.template, max_tokens=data.max_tokens)
    every = np.arange(len(source))
    positions = every
    if config.max_samples is not None and len(source) > config.max_samples:
        positions = np.sort(permutation(len(source), 0, 0)[: config.max_samples])
    losses = losses_without_teacher(plan.config.losses.for_validation)
    _check_any_usable(source, preparation, positions)
    return ValidationSamples(
        described=f"{_count(positions, every)} of {source.path}, terms without a teacher: {', '.join(losses.weights)}",
        identity="data " + " ".join(f"{piece.sha256[:16]} of {piece.num_samples} samples" for piece in source.pieces),
        losses=losses,
        positions=positions,
        lengths=np.full(len(positions), data.max_tokens or UNLIMITED),
        prepare=partial(_prepare_raw, source, preparation),
        has_targets=False,
    )


def losses_without_teacher(losses: LossConfig) -> LossConfig:
    """The terms that need no target, with their weights; with their default weights if none of them has one."""
    names = terms_without_teacher()
    weights = {name: losses.weights.get(name, 0.0) for name in names}
    if not any(weights.values()):
        weights = {name: TERMS[name].weight for name in names}
    return losses.model_copy(update={**dict.fromkeys(TERMS, 0.0), **weights})


def _prepare_raw(source: DataSource, preparation: Preparation, positions: NDArray[np.int64]) -> Prepared:
    examples, unusable = [], []
    for position in positions:
        example = _example(source, preparation, int(position))
        if isinstance(example, Unusable):
            unusable.append(example)
        else:
            examples.append(example)
    return Prepared(batch=collate_inputs(examples) if examples else None, unusable=tuple(unusable))


def _example(source: DataSource, preparation: Preparation, position: int) -> Example | Unusable:
    sample = source[position]
    name = f"{sample.id!r} (index {sample.index})"
    if sample.problem is not None:
        return Unusable(name=name, reason=sample.problem)
    if sample.folder is None and needs_folder(sample):
        return Unusable(name=name, reason="has images, but there is no image folder; set train.validation.data.images")
    try:
        example = preparation.build(sample.turns, image_files(sample))
    except SampleError as error:
        return Unusable(name=name, reason=str(error))
    if not len(example.positions.supervised_positions):
        return Unusable(name=name, reason="has no supervised token")
    return example


def _check_any_usable(source: DataSource, preparation: Preparation, positions: NDArray[np.int64]) -> None:
    """Read samples until one can be used.

    Raises:
        TrainError: none can.
    """
    found = []
    for position in positions:
        example = _example(source, preparation, int(position))
        if not isinstance(example, Unusable):
            return
        found.append(example)
    reasons = f": {unusable_line(found)}" if found else ""
    raise TrainError(f"train.validation.data {source.path}: none of {len(found)} samples can be used{reasons}")


def unusable_line(unusable: Sequence[Unusable]) -> str:
    """Reasons with their counts, the most frequent first, and the sample that is the first with each."""
    counts = Counter(sample.reason for sample in unusable)
    first = {sample.reason: sample.name for sample in reversed(unusable)}
    shown = [f"{count} x {reason} (first: {first[reason]})" for reason, count in counts.most_common(LISTED)]
    more = f"; {len(counts) - LISTED} more reasons" if len(counts) > LISTED else ""
    return "; ".join(shown) + more


def _count(positions: NDArray[np.int64], every: NDArray[np.int64]) -> str:
    number = "1 sample" if len(every) == 1 else f"{len(every)} samples"
    return f"{len(positions)} of {number}" if len(positions) < len(every) else number
