"""Phase 2 as a page: order -> batch -> forward -> backward -> step -> log -> checkpoint."""

import logging
import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from time import perf_counter

from torch import Tensor

from alignkd.storage import SampleOrder, StoreReader
from alignkd.student_train.config import LossConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.dataset import CachedDataset
from alignkd.student_train.data.handoff.stream import closing_workers
from alignkd.student_train.data.loader import micro_batches
from alignkd.student_train.data.sample_kinds import SampleKinds
from alignkd.student_train.data.stem_targets import StemTargets
from alignkd.student_train.distributed.interrupt import StopSignals
from alignkd.student_train.distributed.ranks import ASKED_ACCELERATOR, Ranks, start_ranks
from alignkd.student_train.engine.engine import Engine, StepOutcome
from alignkd.student_train.engine.gradient_checkpointing import checkpoint_decoder_layers
from alignkd.student_train.engine.memory_faults import naming_memory_settings
from alignkd.student_train.engine.schedule import learning_rate_factor
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob, TrainResult
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.metrics.log import RunLog
from alignkd.student_train.objective.adapters import Adapters
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.objective.target_sources import stem_lookup, stem_of_run, targets_of_stem
from alignkd.student_train.output import adapters_file, read_finished, student_folder
from alignkd.student_train.run.checkpoint import (
    TrainState,
    check_same_settings,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from alignkd.student_train.run.checkpoint_times import CheckpointTimes
from alignkd.student_train.run.checks import check_images, check_store_fits
from alignkd.student_train.run.claim import claimed
from alignkd.student_train.run.export import check_export_can_be_repeated, export, is_exported
from alignkd.student_train.run.settings import deciding_settings
from alignkd.student_train.run.step_figures import step_figures
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.model.mobilevlm import MobileVLM
from alignkd.vlm.stem.checks import check_same_tower
from alignkd.vlm.stem.file import open_stem
from alignkd.vlm.stem.teacher_head import LM_HEAD_FILE, read_lm_head
from alignkd.vlm.weights.checkpoint import Checkpoint

logger = logging.getLogger(__name__)


@naming_memory_settings
def train(job: TrainJob) -> TrainResult:
    """Train a student from a store, or go on where an earlier call of the same job stopped.

    Every process of a launcher (torchrun, deepspeed) calls this; one process alone needs none.

    Raises:
        ValueError: one line on what does not fit: store, student, settings, output, a sample.
    """
    ranks = start_ranks()
    with claimed(job.train.output, ranks, configuration=job.configuration):
        return _train(job, ranks)


def _train(job: TrainJob, ranks: Ranks) -> TrainResult:
    checkpoint = job.open_student()
    dataset = open_dataset(job, checkpoint)
    job = replace(job, train=job.train.in_steps(len(dataset), ranks.world_size))
    config, settings = job.train, deciding_settings(job, checkpoint, dataset.reader, ranks)
    order = SampleOrder(len(dataset), config.seed, config.global_batch_size(ranks.world_size))
    kinds = SampleKinds(dataset.reader, dataset.builder.vision_tokens)
    ending = _Ending(job, dataset.reader, kinds, order)
    if (finished := read_finished(config.output)) is not None:
        check_same_settings(config.output, finished["settings"], settings)
        logger.info("output %s: all %d steps were done before", config.output, finished["step"])
        if is_exported(config.output):
            return ending.result(TrainState.of(finished), finished["metrics"], already_finished=True)
    if ranks.is_first:
        _log_device(job, ranks)
        _say_what_is_not_there(dataset.reader)

    checkpoints = config.output / "checkpoints"
    found = find_checkpoint(checkpoints, settings, ranks)
    state = TrainState() if found is None else found.state
    if finished is not None:
        check_export_can_be_repeated(config, state)
        logger.warning("output %s: its student or adapters are gone; exporting them again", config.output)
    elif found is not None and ranks.is_first:
        logger.info("output %s: resuming at step %d of %d", config.output, state.step, config.num_steps)
    # Before there is a model: data workers are forked here and would keep what this process writes to later.
    stem = stem_lookup(dataset.reader, config)
    batches = micro_batches(dataset, order, config, ranks, first_step=state.step, stem=stem)
    with closing_workers(batches, only_after_an_error=True):
        student = build_student(job, checkpoint, dataset.reader)
        counts = GlobalCounts(dataset.reader, student.model.config, config.losses.weights)
        engine = Engine(student, config, dtype=job.torch_dtype, ranks=ranks)
        if found is not None:
            load_checkpoint(found, engine)
    times = CheckpointTimes(config)
    with StopSignals() as signals, RunLog(config, ranks, done=state.step) as log, closing_workers(batches):
        while state.step < config.num_steps:
            positions = order.global_batch_indices(state.step)
            tally = StepTally(config.losses.weights, counts(positions))
            factor = learning_rate_factor(state.step, steps=config.num_steps, warmup_ratio=config.warmup_ratio)
            outcome = _optimiser_step(engine, batches, tally, factor)
            tally.gather(ranks, stop=signals.asked, time_is_up=times.time_is_up)

            state = state.after(samples=order.global_batch, skipped=not outcome.applied)
            figures = step_figures(
                state,
                tally,
                outcome,
                learning_rate=config.learning_rate * factor,
                tokens=kinds.tokens(positions),
                kinds=kinds(positions),
                device=ranks.device,
            )
            log.append(figures)
            _check_not_diverged(state, tally, job)
            if times.is_due(state.step, tally):
                log.flush()
                save_checkpoint(checkpoints, engine, state, settings, ranks, keep=config.keep_checkpoints)
                times.written()
            if tally.stopped:
                break
    if state.step < config.num_steps:
        return ending.result(state, log.last, interrupted_by=signals.received or signal.SIGTERM)
    last = log.last if finished is None else finished["metrics"]
    export(job, checkpoint, engine, state, settings, last)
    ranks.barrier()
    return ending.result(state, last, already_finished=finished is not None)


def open_dataset(job: TrainJob, checkpoint: Checkpoint) -> CachedDataset:
    """The store as this job's student reads it, after every check that needs no weights."""
    reader = StoreReader(job.store)
    builder = checkpoint.example_builder(job.template, max_tokens=job.max_tokens)
    check_store_fits(reader, builder, checkpoint.config, job.train.losses)
    stem_of_run(reader, job.train)
    check_images(reader, job.images)
    return CachedDataset(reader, builder, job.images)


def build_student(job: TrainJob, checkpoint: Checkpoint, reader: StoreReader) -> DistilledStudent:
    """The student with adapters from the store's teacher: of an earlier stage if the job names them, else fresh."""
    model = checkpoint.load_model(dtype=job.torch_dtype)
    teacher = reader.manifest.shapes
    adapters = Adapters(
        heads=(teacher.num_heads, model.config.num_heads),
        hidden_sizes=(teacher.hidden_size, model.config.hidden_size),
    )
    if job.train.adapters is None:
        adapters.initialise(job.train.adapter_init, seed=job.train.seed)
    else:
        adapters.load(job.train.adapters)
    stem, head_VD = load_stem(job, reader, model)
    if head_VD is None:
        head_VD = teacher_lm_head(reader, job.train.losses)
    if job.train.gradient_checkpointing:
        checkpoint_decoder_layers(model)
    return DistilledStudent(model, adapters, job.train.losses, head_VD, stem)


def load_stem(job: TrainJob, reader: StoreReader, student: MobileVLM) -> tuple[StemTargets | None, Tensor | None]:
    """What gives the targets that the store does not keep, and the teacher's lm_head [V, Dt] if that is the stem's.

    Raises:
        InputError: the student sees with another vision tower than the stem's teacher; else as `stem_of_run`.
    """
    info, wanted = stem_of_run(reader, job.train), targets_of_stem(reader, job.train)
    if info is None:
        return None, None
    if wanted != {"logits"}:
        check_same_tower(info, student)
    stem = open_stem(info.path, lm_head="logits" in wanted)
    head_VD = stem.take_lm_head()
    if wanted == {"logits"}:
        return None, head_VD
    chunk_bytes = job.train.losses.attention_chunk_mib << 20
    return StemTargets(stem, wanted - {"logits"}, chunk_bytes=chunk_bytes), head_VD


def teacher_lm_head(reader: StoreReader, losses: LossConfig) -> Tensor | None:
    """What turns stored hidden states into logits, [V, Dt]; None where the run needs none."""
    if reader.manifest.codecs.logits.kind != "hidden" or losses.logit == 0:
        return None
    shapes = reader.manifest.shapes
    return read_lm_head(reader.attachment(LM_HEAD_FILE), vocab_size=shapes.vocab_size, hidden_size=shapes.hidden_size)


def _optimiser_step(
    engine: Engine, batches: Iterator[TrainBatch], tally: StepTally, learning_rate_factor: float
) -> StepOutcome:
    """Micro-batches until the global batch is complete."""
    outcome = None
    while outcome is None:
        asked = perf_counter()
        batch = next(batches)
        tally.waited += perf_counter() - asked
        engine.backward(tally.add(engine(batch)))
        outcome = engine.end_micro_batch(learning_rate_factor)
    return outcome


def _log_device(job: TrainJob, ranks: Ranks) -> None:
    """The device of the first process; InputError where it cannot compute in the job's dtype."""
    line, warnings = device_report(ranks.device, job.torch_dtype, chosen=ASKED_ACCELERATOR is not None)
    logger.info("%s%s", line, f", {ranks.world_size} processes" if ranks.world_size > 1 else "")
    for warning in warnings:
        logger.warning("%s", warning)


def _say_what_is_not_there(reader: StoreReader) -> None:
    """A store holds nothing of a sample that the teacher could not use, so no term can be trained on it."""
    if reader.quarantined:
        logger.warning(
            "store %s: %d samples were quarantined by the teacher pass and are not trained on; "
            "`alignkd shards ls %s --unusable` lists them with the reasons",
            reader.path,
            len(reader.quarantined),
            reader.path,
        )


def _check_not_diverged(state: TrainState, tally: StepTally, job: TrainJob) -> None:
    # In float16 a finite loss with an overflowing gradient is how the loss scale is found.
    searching_scale = job.dtype == "float16" and math.isfinite(tally.loss)
    if state.skipped_in_a_row >= job.train.skip_limit and not searching_scale:
        raise TrainError(
            f"{state.skipped_in_a_row} steps in a row were skipped, at step {state.step} the loss is {tally.loss} or "
            f"its gradient is not finite; lower learning_rate {job.train.learning_rate} or change dtype {job.dtype}"
        )


@dataclass(frozen=True)
class _Ending:
    """Makes the result of a run, whenever it ends."""

    job: TrainJob
    reader: StoreReader
    kinds: SampleKinds
    order: SampleOrder

    def result(
        self, state: TrainState, metrics: Metrics, *, already_finished: bool = False, interrupted_by: int | None = None
    ) -> TrainResult:
        output = self.job.train.output
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
