"""The validations of a run: when they are due, what they find, and what follows: best checkpoint, early end, export."""

import logging
from typing import Any

from alignkd.student_train.checkpoints.checkpoint import checkpoint_path, keep_validation, load_weights
from alignkd.student_train.data.division import MicroBatchLimit
from alignkd.student_train.distributed.interrupt import StopSignals
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import ValidationOutcome
from alignkd.student_train.metrics.log import RunLog
from alignkd.student_train.output import PREFERENCE_FIGURES, checkpoints_folder
from alignkd.student_train.run.plan import RunPlan
from alignkd.student_train.run.start import Start
from alignkd.student_train.validation.evaluation import Evaluation, evaluate
from alignkd.student_train.validation.samples import open_validation_samples, unusable_line
from alignkd.student_train.validation.state import ValidationState
from alignkd.student_train.validation_config import LOSS, ValidationConfig

logger = logging.getLogger(__name__)


def open_validation(plan: RunPlan, start: Start) -> "Validation | None":
    """The validations of a run as its checkpoint left them, the same on ALL ranks; None if it asks for none.

    Raises:
        ValueError: one line: samples that do not fit, or other samples than before.
    """
    config = plan.config.validation
    return None if config is None else Validation(plan, config, start)


class Validation:
    """The validations of one run.

    Attributes:
        state: what they have found so far.
        interrupted: a stop was requested during a validation, which is repeated after the resume.
        improved: the last validation was the best so far, so its state needs a checkpoint.
    """

    def __init__(self, plan: RunPlan, config: ValidationConfig, start: Start) -> None:
        self.plan, self.config = plan, config
        self.interrupted = self.improved = False
        self._folder = checkpoints_folder(plan.config.output)
        self._samples = open_validation_samples(plan, config)
        # a run that goes on from the checkpoint of another has none of its own
        self._checkpoint = start.checkpoint if start.resumes(plan.config.output) else None
        self.state = self._state_of(start)
        self._lists_unusable = True
        if plan.ranks.is_first:
            interval = config.interval(plan.config.num_steps - plan.first_step)
            times = "every step" if interval == 1 else f"every {interval} steps"
            logger.info("validation: %s, %s", self._samples.described, times)

    @property
    def figure(self) -> str:
        """The figure that chooses the best state."""
        return self.config.chosen_figure

    @property
    def is_over(self) -> bool:
        """Whether the run ends early."""
        return self.config.patience is not None and self.state.waited >= self.config.patience

    @property
    def ends_run(self) -> bool:
        """Whether no further step is done now: the run ends early, or a stop was requested."""
        return self.is_over or self.interrupted

    def is_complete(self, step: int) -> bool:
        """Whether the run is finished after `step`."""
        return (self.is_over or step == self.plan.config.num_steps) and not self.is_pending(step)

    def is_pending(self, step: int) -> bool:
        """Whether the state after `step` is still to be validated."""
        plan = self.plan
        due = self.config.is_due(step, plan.config.num_steps, first_step=plan.first_step)
        return due and self.state.last_step != step

    def begin(self, engine: Engine, step: int, log: RunLog, signals: StopSignals) -> None:
        """Validate the state from which the run starts, if it is due, or if a stop prevented it."""
        if self.is_over or not self.is_pending(step):
            return
        self._validate(engine, step, log, signals, is_candidate=self._checkpoint is not None)
        if not self.interrupted and self._checkpoint is not None:
            keep_validation(self._checkpoint, self.state.document, self.plan.ranks)

    def after_step(self, engine: Engine, step: int, log: RunLog, signals: StopSignals) -> None:
        """Validate the state after a step, if it is due."""
        self.improved = False
        if self.is_pending(step):
            self._validate(engine, step, log, signals, is_candidate=True)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether a checkpoint must be written after the step, whether or not one is due."""
        return self.improved or self.interrupted or self.is_over

    @property
    def in_checkpoint(self) -> dict[str, Any]:
        """What `save_checkpoint` needs of the validations."""
        return {"best_step": self.state.best_step, "validation": self.state.document}

    def outcome(self, last_step: int) -> ValidationOutcome:
        """What the validations of the finished run led to."""
        state, best = self.state, self.state.best_step
        exported = best if self.config.export == "best" and best is not None else last_step
        return ValidationOutcome(
            figure=self.figure,
            best_step=best,
            best=state.best,
            last=state.last,
            exported_step=exported,
            stopped_early=self._reason() if self.is_over and last_step < self.plan.config.num_steps else None,
        )

    def load_exported(self, engine: Engine, last_step: int) -> None:
        """Load the weights that are exported into the engine, which holds those of the last step.

        Raises:
            TrainError: their checkpoint is damaged.
        """
        if (step := self.outcome(last_step).exported_step) == last_step:
            return
        try:
            load_weights(self._folder, step, engine)
        except TrainError as error:
            raise TrainError(
                f"{error}; restore it, or remove {checkpoint_path(self._folder, step)} and run the same command again, "
                "which then exports the student of the last step"
            ) from error

    def _reason(self) -> str:
        assert self.config.patience is not None
        least = f" by more than {self.config.min_delta:g}" if self.config.min_delta else ""
        best = "" if self.state.best is None else f"; the best is {self.state.best:.4g} of step {self.state.best_step}"
        number = "1 validation" if self.config.patience == 1 else f"{self.config.patience} validations"
        return f"validation {self.figure} has not improved{least} in {number}{best}"

    def _validate(self, engine: Engine, step: int, log: RunLog, signals: StopSignals, *, is_candidate: bool) -> None:
        train, own = self.plan.config, self.config.micro_batch
        found = evaluate(
            engine.student,
            self._samples,
            self.plan.ranks,
            limit=train.micro_batch_limit if own is None else MicroBatchLimit(samples=own),
            workers=train.data_workers,
            stop_requested=lambda: signals.stop_requested,
        )
        if found is None:
            self.interrupted = True
            return
        self._report_unusable(found)
        value, min_delta = self._value(found), self.config.min_delta
        self.state = self.state.after(step, value, min_delta=min_delta, is_candidate=is_candidate)
        self.improved = self.state.best_step == step
        log.append_validation(_line(step, found, self.state, has_targets=self._samples.has_targets), self.figure)
        if self.is_over and step < train.num_steps and self.plan.ranks.is_first:
            logger.info("step %d of %d: ends early: %s", step, train.num_steps, self._reason())

    def _value(self, found: Evaluation) -> float | None:
        if self.figure == LOSS:
            return found.loss
        value = found.means[self.figure]
        if value is None:
            raise TrainError(
                f"train.validation.figure is {self.figure!r}, but none of the {found.samples} validation samples has "
                "an element of it; choose another figure or other samples"
            )
        return value

    def _report_unusable(self, found: Evaluation) -> None:
        if found.unusable and self._lists_unusable and self.plan.ranks.is_first:
            left_out, total = len(found.unusable), found.samples + len(found.unusable)
            reasons = unusable_line(found.unusable)
            logger.warning("validation: %d of %d samples cannot be used: %s", left_out, total, reasons)
        self._lists_unusable = False

    def _state_of(self, start: Start) -> ValidationState:
        fresh = ValidationState(samples=self._samples.identity)
        found = self._checkpoint
        if found is None or "validation" not in found.document:
            return fresh
        state = ValidationState.of(found.document["validation"])
        if state.samples != fresh.samples:
            raise TrainError(
                f"output {self.plan.config.output} was started with other validation samples: {state.samples}, now "
                f"{fresh.samples}; restore train.validation, or choose another output"
            )
        return self._with_its_best(state, finished=start.finished_metrics is not None)

    def _with_its_best(self, state: ValidationState, *, finished: bool) -> ValidationState:
        """The state; without its best step if the checkpoint of that step was removed."""
        step, ranks = state.best_step, self.plan.ranks
        if step is None or ranks.from_first(checkpoint_path(self._folder, step).is_dir()):
            return state
        where = f"output {self.plan.config.output}"
        if finished and self.config.export == "best":
            raise TrainError(
                f"{where}: finished, but its student or adapters are missing, and so is the checkpoint of the best "
                f"step {step} to export them from; restore them, or train into another output"
            )
        if ranks.is_first:
            logger.warning("%s: the checkpoint of the best step %d is gone; the best is chosen anew", where, step)
        return state.without_best()


def _line(step: int, found: Evaluation, state: ValidationState, *, has_targets: bool) -> dict[str, Any]:
    """The line of `validation.jsonl`; `output.VALIDATION_FIGURES` lists every name that is not a loss."""
    return {
        "step": step,
        "loss": found.loss,
        **found.means,
        **({} if found.preference is None else dict(zip(PREFERENCE_FIGURES, found.preference, strict=True))),
        "samples": found.samples,
        **({} if has_targets else {"unusable": len(found.unusable)}),
        "seconds": found.seconds,
        "best_step": state.best_step,
        "best": state.best,
    }
