"""Phase 2 as a page: plan -> batch -> forward -> backward -> step -> log -> checkpoint -> export."""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter

from alignkd.student_train.checkpoints.checkpoint import DOMAIN_WEIGHTS, TrainState, load_checkpoint, save_checkpoint
from alignkd.student_train.checkpoints.export import export
from alignkd.student_train.checkpoints.times import CheckpointTimes
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.data.handoff.stream import closing_workers
from alignkd.student_train.distributed.interrupt import StopSignals
from alignkd.student_train.distributed.ranks import accelerator, start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.determinism import repeatable
from alignkd.student_train.engine.engine import Engine, StepOutcome
from alignkd.student_train.engine.memory_faults import memory_error_as_train_error
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob, TrainResult
from alignkd.student_train.metrics.file import Metrics
from alignkd.student_train.metrics.log import RunLog
from alignkd.student_train.metrics.trackers.of_run import trackers_of
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.output import checkpoints_folder
from alignkd.student_train.run.attention.row_reference import references_of_run
from alignkd.student_train.run.output.claim import claimed
from alignkd.student_train.run.plan import RunPlan, plan_run
from alignkd.student_train.run.preference_pass import with_statistics
from alignkd.student_train.run.start import Start, announce, find_start, result_of_finished
from alignkd.student_train.run.step_figures import step_figures
from alignkd.student_train.run.student import build_student, use_chosen_kernels
from alignkd.student_train.run.taid import TaidProgress
from alignkd.student_train.validation.domain_weights import DomainWeighing, open_domain_weighing
from alignkd.student_train.validation.validation import Validation, open_validation


@memory_error_as_train_error
def train(job: TrainJob) -> TrainResult:
    """Train a student from a store, or resume where an earlier call of the same job stopped.

    Every process of a launcher (torchrun, deepspeed) calls this; a single process needs no launcher.

    Raises:
        ValueError: one line about what does not fit: store, student, settings, output, a sample.
        TypeError: `job` is not a TrainJob.
    """
    if not isinstance(job, TrainJob):
        raise TypeError(f"job is {job!r:.60}, expected a TrainJob; alignkd.train_job makes one from a file or keywords")
    with repeatable(job.train.deterministic, accelerator()):
        ranks = start_ranks()
        with claimed(job.train.output, ranks, configuration=job.configuration):
            return _train(plan_run(job, ranks))


def _train(plan: RunPlan) -> TrainResult:
    if (result := result_of_finished(plan)) is not None:
        return result
    announce(plan)
    start = find_start(plan)
    validation = open_validation(plan, start)
    weighing = open_domain_weighing(plan, start)
    # Data workers are forked here, before there is a model: they would keep the memory that this process has now.
    batches = plan.micro_batches(first_step=start.state.step)
    with closing_workers(batches, only_after_an_error=True):
        engine = _prepare_engine(plan, start)
    end = _run_steps(plan, engine, batches, start, validation, weighing)
    if not end.complete:
        return plan.result(end.state, end.metrics, interrupted_by=end.signal or signal.SIGTERM)
    last = end.metrics if start.finished_metrics is None else start.finished_metrics
    outcome = None
    if validation is not None:
        outcome = validation.outcome(end.state.step)
        validation.load_exported(engine, end.state.step)
    weights = None if weighing is None else weighing.document
    export(plan.job, plan.student, engine, end.state, plan.settings, last, validation=outcome, domain_weights=weights)
    plan.ranks.barrier()
    return plan.result(end.state, last, already_finished=start.finished_metrics is not None, validation=outcome)


def _prepare_engine(plan: RunPlan, start: Start) -> Engine:
    """The student and its optimiser as at the start of the run."""
    student = build_student(plan.job, plan.student, plan.reader, plan.ranks.device)
    engine = build_engine(student, plan.config, dtype=plan.job.torch_dtype, ranks=plan.ranks)
    use_chosen_kernels(plan.job, student.model, plan.ranks)
    student.references = references_of_run(plan, student, resumed=start.resumes(plan.config.output))
    if start.checkpoint is not None:
        load_checkpoint(start.checkpoint, engine)
    return engine


@dataclass(frozen=True, kw_only=True)
class _End:
    """How the loop of steps ended: the state, the metrics of the last step, and the signal that came, or 0.

    `complete` is False if a stop was requested before the last step or during its validation.
    """

    state: TrainState
    complete: bool
    metrics: Metrics
    signal: int


def _run_steps(
    plan: RunPlan,
    engine: Engine,
    batches: Iterator[TrainBatch],
    start: Start,
    validation: Validation | None,
    weighing: DomainWeighing | None,
) -> _End:
    """Optimiser steps until the last one, until validation ends them, or until a stop is requested."""
    state, taid = start.state, TaidProgress(plan, start)
    config, ranks, checkpoints = plan.config, plan.ranks, checkpoints_folder(plan.config.output)
    counts = GlobalCounts(plan.samples.readers, engine.student.model.config, config.losses.weights, plan.attention)
    times = CheckpointTimes(config, num_samples=plan.order.num_samples, global_batch=plan.order.global_batch)
    validated = None if validation is None else validation.state.last_step
    open_trackers = partial(trackers_of, plan.job, config, plan.settings, done=state.step)
    with (
        StopSignals() as signals,
        RunLog(config, ranks, open_trackers, done=state.step, validated=validated) as log,
        closing_workers(batches),
    ):
        if validation is not None:
            validation.begin(engine, state.step, log, signals)
        if weighing is not None:
            weighing.before_step(engine, state.step, signals)
        while state.step < config.num_steps and not _is_ended(validation, weighing):
            step = plan.step(state.step)
            engine.start_step(state.step, micro_batches=len(step.division))
            engine.student.step_values, engine.student.group_sizes = taid.step_values, step.group_sizes
            sources = plan.step_sources(step, counts)
            tally = StepTally(step.weights, counts(step.positions), sources, plan.layers_of_attention)
            of_step = with_statistics(engine.student, batches, ranks, micro_batches=len(step.division))
            outcome = _optimiser_step(engine, of_step, tally, step.factor)
            tally.gather(ranks, stop=signals.stop_requested, time_is_up=times.time_is_up)

            moved = taid.after_step(state.step, tally)
            state = state.after(samples=len(step.positions), skipped=not outcome.applied)
            log.append(step_figures(state, step, tally, outcome, taid=moved, device=ranks.device))
            _check_not_diverged(state, tally, plan.job)
            if validation is not None and not tally.stopped:
                validation.after_step(engine, state.step, log, signals)
            if weighing is not None and not tally.stopped and not _is_ended(validation, None):
                weighing.before_step(engine, state.step, signals)
            needed = (validation is not None and validation.needs_checkpoint) or _is_ended(None, weighing)
            if times.is_due(state.step, tally) or needed:
                log.flush()
                found = {} if validation is None else validation.in_checkpoint
                weights = {} if weighing is None else {DOMAIN_WEIGHTS: weighing.document}
                save_checkpoint(
                    checkpoints,
                    engine,
                    state,
                    plan.settings,
                    ranks,
                    keep=config.keep_checkpoints,
                    kept=times.is_kept(state.step),
                    further={**taid.in_checkpoint, **weights},
                    **found,
                )
                times.written()
            if tally.stopped:
                break
    complete = state.step == config.num_steps if validation is None else validation.is_complete(state.step)
    return _End(state=state, complete=complete, metrics=log.last, signal=signals.received)


def _is_ended(validation: Validation | None, weighing: DomainWeighing | None) -> bool:
    """Whether no further step is done: the run ends early, or a stop was requested outside of a step."""
    return (validation is not None and validation.ends_run) or (weighing is not None and weighing.interrupted)


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


def _check_not_diverged(state: TrainState, tally: StepTally, job: TrainJob) -> None:
    # In float16 a finite loss with an overflowing gradient is how the loss scale is found.
    searching_scale = job.dtype == "float16" and math.isfinite(tally.loss)
    if state.skipped_in_a_row >= job.train.skip_limit and not searching_scale:
        raise TrainError(
            f"{state.skipped_in_a_row} steps in a row were skipped, at step {state.step} the loss is {tally.loss} or "
            f"its gradient is not finite; lower learning_rate {job.train.learning_rate} or change dtype {job.dtype}"
        )
