"""Where a run starts: at its beginning, at a checkpoint, or not at all because it was finished before."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.student_train.checkpoints.checkpoint import (
    DOMAIN_WEIGHTS,
    WRITER,
    Checkpoint,
    TrainState,
    check_same_settings,
    find_checkpoint,
)
from alignkd.student_train.checkpoints.export import check_export_can_be_repeated, is_exported
from alignkd.student_train.config import OptimizerName, samples_of_epochs
from alignkd.student_train.data.domains.history import DomainHistory
from alignkd.student_train.data.domains.order import DomainOrder
from alignkd.student_train.distributed.ranks import REQUESTED_ACCELERATOR
from alignkd.student_train.job import TrainResult, ValidationOutcome
from alignkd.student_train.metrics.file import Metrics, MetricsLog
from alignkd.student_train.output import METRICS, checkpoints_folder, read_finished
from alignkd.student_train.run.checks.agreement import samples_in_several
from alignkd.student_train.run.checks.unused import unused_of_store
from alignkd.student_train.run.extension import extension_line, small_rate_warning
from alignkd.student_train.run.plan import RunPlan
from alignkd.student_train.trained.counts import described_of
from alignkd.vlm.hardware.device_report import device_report
from alignkd.vlm.kernels.choice import check_kernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts.

    Attributes:
        checkpoint: to be loaded, of this run or of the one that it extends; None at the beginning.
        finished_metrics: the last metrics of a run that was finished before, if only its export is repeated.
    """

    checkpoint: Checkpoint | None
    finished_metrics: Metrics | None

    @property
    def state(self) -> TrainState:
        """The state before the first step."""
        return TrainState() if self.checkpoint is None else self.checkpoint.state

    def resumes(self, output: Path) -> bool:
        """Whether the checkpoint is of the run in `output` itself, not of one that this run extends."""
        return self.checkpoint is not None and self.checkpoint.path.parent == checkpoints_folder(output)


def result_of_finished(plan: RunPlan) -> TrainResult | None:
    """The result of a run that was finished before, with its student and adapters in place; None for any other run.

    Raises:
        TrainError: the finished run had other settings, or its mark is damaged.
    """
    output = plan.config.output
    if (finished := read_finished(output)) is None:
        return None
    check_same_settings(output, finished["settings"], plan.settings)
    _log_finished(output, finished)
    if not is_exported(output, plan.student, plan.job.trained):
        return None
    if isinstance(plan.order, DomainOrder):  # samples are counted by the order
        plan.order.restore(DomainHistory.of(finished[DOMAIN_WEIGHTS]).weights)
    validation = outcome_of(finished)
    return plan.result(TrainState.of(finished), finished["metrics"], already_finished=True, validation=validation)


def outcome_of(finished: Mapping[str, Any]) -> ValidationOutcome | None:
    """The validations in `finished.json`; None for a run without them."""
    found = finished.get("validation")
    return None if found is None else ValidationOutcome(**found)


def _log_finished(output: Path, finished: Mapping[str, Any]) -> None:
    outcome = outcome_of(finished)
    if outcome is not None and outcome.stopped_early is not None:
        logger.info("output %s: ended early before, at step %d: %s", output, finished["step"], outcome.stopped_early)
    else:
        logger.info("output %s: all %d steps were done before", output, finished["step"])


def find_start(plan: RunPlan) -> Start:
    """The newest sound checkpoint of the run, or its beginning; the same on ALL ranks.

    The beginning of an extension is the last checkpoint of the earlier run.

    Raises:
        TrainError: as `find_checkpoint`; a finished run lost its student, and the checkpoint to export it from.
    """
    config, ranks = plan.config, plan.ranks
    found = find_checkpoint(checkpoints_folder(config.output), plan.settings, ranks)
    finished = read_finished(config.output)
    start = Start(checkpoint=found, finished_metrics=None if finished is None else finished["metrics"])
    if finished is not None:
        check_export_can_be_repeated(config, start.state, last_step=finished["step"])
        logger.warning("output %s: its student or adapters are missing; exporting them again", config.output)
    elif found is not None and ranks.is_first:
        logger.info("output %s: resuming at step %d of %d", config.output, start.state.step, config.num_steps)
    elif found is None and plan.extension is not None:
        start = _start_of_extension(plan)
    if start.checkpoint is not None and ranks.is_first:
        for line in changed_engine(start.checkpoint, plan.config.optimizer, ranks.world_size):
            logger.info("%s", line)
    return start


def changed_engine(checkpoint: Checkpoint, optimizer: OptimizerName, processes: int) -> list[str]:
    """Lines on another optimiser or number of processes than those that wrote the checkpoint, and what follows."""
    if (writer := checkpoint.document.get(WRITER)) is None:
        return []  # of an earlier version, which did not keep it
    before, step = writer["optimizer"], checkpoint.state.step
    lines = []
    if before != optimizer:
        lines.append(f"optimizer: {before} until step {step}, now {optimizer}")
    if writer["processes"] != processes:
        lines.append(f"processes: {writer['processes']} until step {step}, now {processes}")
    if lines and optimizer == "adamw_8bit":
        why = "which are divided into other blocks" if before == optimizer else "which were in float32"
        lines[-1] += f"; moments, {why}, are rounded to 8 bits"
    return lines


def _start_of_extension(plan: RunPlan) -> Start:
    """The last state of the earlier run; figures of an attempt that left no checkpoint are dropped."""
    assert plan.extension is not None
    if plan.ranks.is_first:
        MetricsLog(plan.config.output / METRICS).cut_back(0)
    return Start(checkpoint=plan.extension.checkpoint, finished_metrics=None)


def announce(plan: RunPlan) -> None:
    """Log device, length and unusable samples of a run, on the first rank.

    Raises:
        InputError: the device cannot compute in the job's dtype, or not with its kernels.
    """
    if plan.ranks.is_first:
        logger.info("trains: %s", described_of(plan.job.trained, plan.student.size()))
        _log_device(plan)
        for line in (*plan.mixture.lines(), *_attention(plan), _length(plan)):
            logger.info("%s", line)
        _note_longer_than_budget(plan)
        _warn_about_repeated(plan)
        _announce_extension(plan)
        _warn_about_unusable(plan)
        _note_unused_targets(plan)


def _attention(plan: RunPlan) -> list[str]:
    """The layers that are compared, unless they are the first ones."""
    match = plan.attention
    if match is None or (plan.config.losses.attention_layers is None and match.form == "mse"):
        return []
    return [
        f"attention: layers of the student and of the teacher {{{match}}}, form {match.form}, heads {match.heads}, "
        f"row weights {match.row_weights}"
    ]


def _log_device(plan: RunPlan) -> None:
    ranks = plan.ranks
    line, warnings = device_report(ranks.device, plan.job.torch_dtype, chosen=REQUESTED_ACCELERATOR is not None)
    logger.info("%s%s", line, f", {ranks.world_size} processes" if ranks.world_size > 1 else "")
    for warning in warnings:
        logger.warning("%s", warning)
    check_kernels(plan.config.kernels, ranks.device)


def _length(plan: RunPlan) -> str:
    """Steps and samples of the run, and how `epochs` were rounded to them."""
    steps, batch, stored = plan.config.num_steps, plan.order.global_batch, plan.order.num_samples
    line = (
        f"{steps} steps of {batch} samples: {steps * batch} samples, {steps * batch / stored:.4g} passes over {stored}"
    )
    if plan.requested_epochs is None:
        return line
    asked = f"train.epochs {plan.requested_epochs:g}"
    added = steps * batch - samples_of_epochs(plan.requested_epochs, stored)
    if not added:
        return f"{line} ({asked})"
    return f"{line} ({asked}, rounded up to whole steps by {added} more samples; no sample is dropped)"


def _note_longer_than_budget(plan: RunPlan) -> None:
    """Samples that take more memory than the token budget promises."""
    budget, lengths = plan.config.token_budget, plan.samples.lengths
    if budget is not None and (number := int((lengths > budget).sum())):
        logger.info(
            "token_budget %d: %d of %d samples are longer, up to %d tokens; each of them is a micro-batch of its own",
            budget,
            number,
            len(lengths),
            int(lengths.max()),
        )


def _warn_about_repeated(plan: RunPlan) -> None:
    """The same sample in two stores is seen as often as both say together, which may not be wanted."""
    readers = plan.samples.readers
    if len(readers) > 1 and (repeated := samples_in_several(readers, plan.mixture.trained)):
        logger.warning(
            "%d samples are in more than one of the stores, with the same conversation and images; each store's copy "
            "is trained on",
            repeated,
        )


def _announce_extension(plan: RunPlan) -> None:
    if plan.extension is None:
        return
    logger.info("%s", extension_line(plan.config, plan.extension, plan.schedule))
    if warning := small_rate_warning(plan.config, plan.schedule):
        logger.warning("%s", warning)


def _note_unused_targets(plan: RunPlan) -> None:
    for reader in plan.samples.readers:
        if (line := unused_of_store(reader, plan.config)) is not None:
            logger.info("%s", line)


def _warn_about_unusable(plan: RunPlan) -> None:
    """A store holds no target of a sample that the teacher could not use, so no term can be trained on it."""
    for reader in plan.samples.readers:
        if reader.quarantined:
            logger.warning(
                "store %s: samples that were unusable for the teacher and are not trained on: %d; "
                "`alignkd shards ls %s --unusable` lists them with the reasons",
                reader.path,
                len(reader.quarantined),
                reader.path,
            )
