"""What `alignkd train --status` prints on a terminal."""

from collections.abc import Iterator
from pathlib import Path

from alignkd.evaluation.table import shown_value
from alignkd.pipeline.console.printing import format_count, format_duration
from alignkd.pipeline.runs.student.train_status import TrainStatus
from alignkd.student_train.output import METRICS, student_folder


def status_lines(status: TrainStatus) -> Iterator[str]:
    """The status for a terminal; the last line is the next step."""
    yield f"{status.output}: {status.state}, {_share(status)}{_speed(status)}"
    if status.pid is not None:
        yield f"process {status.pid} on host {status.host} since {status.since}"
    yield from _loss_lines(status)
    yield from _checkpoint_lines(status)
    if status.scores is not None:
        shown = ", ".join(f"{name} {shown_value(name, value)}" for name, value in status.scores.items())
        yield f"scores: {shown or 'none yet'} (`alignkd report {status.output}` compares them)"
    if status.skipped_steps:
        yield f"skipped: {format_count(status.skipped_steps, 'step')} whose loss or gradient was not finite"
    if status.damaged_lines:
        yield f"{METRICS}: {format_count(status.damaged_lines, 'line')} cannot be read"
    yield from status.remarks
    yield _next_step(status)


def _share(status: TrainStatus) -> str:
    if not status.steps:
        return f"step {status.step:,}"
    if status.state == "finished" and status.step < status.steps:
        return f"ended early at step {status.step:,} of {status.steps:,}"
    return f"{status.step / status.steps:.1%}, step {status.step:,} of {status.steps:,}"


def _speed(status: TrainStatus) -> str:
    if status.seconds_per_step is None:
        return ""
    left = "" if status.seconds_left is None else f", {format_duration(status.seconds_left)} left"
    return f", {status.seconds_per_step:.3g} s/step{left}"


def _loss_lines(status: TrainStatus) -> Iterator[str]:
    if status.loss is not None:
        before = "" if status.loss_before is None else f", {status.loss_before:.4f} before"
        age = status.seconds_since_step
        last = "" if age is None or status.state == "finished" else f"; last step {format_duration(age)} ago"
        yield f"loss {status.loss:.4f}{before} (means of {format_count(status.loss_steps, 'step')}){last}"
    if status.best_validation is not None:
        yield f"best validation {status.best_validation:.4f} at step {status.best_validation_step}"


def _checkpoint_lines(status: TrainStatus) -> Iterator[str]:
    if status.checkpoint_step is None or status.checkpoint_seconds_old is None:
        yield "no checkpoint yet"
        return
    earlier = ", ".join(map(str, status.checkpoints[:-1]))
    others = f"; also of step{'s'[: len(status.checkpoints) > 2]} {earlier}" if earlier else ""
    age = format_duration(max(0.0, status.checkpoint_seconds_old))
    yield f"last checkpoint: step {status.checkpoint_step}, {age} old{others}"


def _next_step(status: TrainStatus) -> str:
    if status.state == "finished":
        return (
            f"finished: the student is {student_folder(Path(status.output))}; train further into a new output with "
            f"train.extend (run: {status.output})"
        )
    if status.state == "running":
        return "a process trains there; Ctrl-C or SIGTERM ends it with a checkpoint"
    if status.state == "unknown":
        return "the lock of the folder cannot be tested; look on the machine whether a process trains there"
    if status.checkpoint_step is None:
        return "no process trains there; run the same `alignkd train` again to start from the beginning"
    return f"no process trains there; run the same `alignkd train` again to resume after step {status.checkpoint_step}"
