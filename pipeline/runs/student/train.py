"""Runs phase 2 of a configuration, and what `alignkd train` prints at the end."""

import os
from pathlib import Path

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.console.printing import format_count
from alignkd.storage import StoreError
from alignkd.student_train.job import TrainResult
from alignkd.student_train.trainer import train

SHOWN = {
    "one_image": "with one image",
    "several_images": "with several images",
    "text_only": "text only",
    "unsupervised": "without a supervised token",
}


def run_train(config: RunConfig) -> TrainResult:
    """Run phase 2; the resolved configuration is kept as `OUTPUT/run.json`.

    Raises:
        StoreError: there is no store yet, or it is damaged.
    """
    job = config.train_job()
    try:
        return train(job)
    except StoreError as error:
        for store in job.stores:
            if isinstance(store.path, Path) and not store.path.exists():
                raise StoreError(
                    f"store {store.path}: not there yet; write it by `alignkd dump`, or correct store.path"
                ) from error
        raise


def is_first_process() -> bool:
    """Whether this process of a launcher (torchrun, deepspeed) prints; a process without a launcher always does."""
    return os.environ.get("RANK", "0") == "0"


def summary(result: TrainResult) -> str:
    """A few lines on how a run ended, including every sample and step that was left out."""
    if result.already_finished:
        return f"nothing left to do: {result.step} steps are done, student{_of_step(result)} in {result.student}"
    if result.interrupted_by is not None:
        return f"alignkd: stopped at step {result.step}; run the same command again to resume"
    kinds = ", ".join(f"{result.samples_by_kind[kind]} {words}" for kind, words in SHOWN.items())
    applied = result.step - result.skipped_steps
    steps = f"{applied} of {result.step} steps" if result.skipped_steps else format_count(applied, "step")
    sources = ", ".join(f"{count} of {name}" for name, count in result.samples_by_source.items())
    samples = format_count(result.samples_seen, "sample")
    lines = [f"trained {steps} on {samples} ({kinds}); student{_of_step(result)} in {result.student}"]
    if sources:
        lines.append(f"samples by source: {sources}")
    if result.validation is not None and result.validation.stopped_early is not None:
        lines.append(f"ended early at step {result.step}: {result.validation.stopped_early}")
    if result.skipped_steps:
        lines.append(f"skipped: {format_count(result.skipped_steps, 'step')} whose loss or gradient was not finite")
    if result.quarantined:
        lines.append(f"not trained on: {format_count(result.quarantined, 'sample')} listed as unusable in the store")
    return "\n".join(lines)


def _of_step(result: TrainResult) -> str:
    """The step whose state was exported, with the figure that chose it; nothing for a run without validation."""
    found = result.validation
    if found is None:
        return ""
    if found.exported_step == result.step:
        return f" of step {result.step}{_value(' (validation %s %s)', found.figure, found.last)}"
    last = _value("; the last step has %s", found.last)
    return f" of step {found.exported_step} (validation {found.figure} {_shown(found.best)}{last})"


def _value(form: str, *values: object) -> str:
    return "" if values[-1] is None else form % (*values[:-1], _shown(values[-1]))


def _shown(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
