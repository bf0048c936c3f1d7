"""What `alignkd eval` prints at its end, and its exit code."""

import os
from collections.abc import Mapping
from pathlib import Path

import click

from alignkd.pipeline.console.errors import fail
from alignkd.pipeline.console.printing import format_count, print_note, say
from alignkd.pipeline.evaluation.run import EvalEnd
from alignkd.pipeline.evaluation.table import result_lines, unusable_lines
from alignkd.teacher_dump.operation.stops import end_process
from alignkd.teacher_dump.operation.workers import launched_rank


def print_result(end: EvalEnd) -> None:
    """Print the scores; questions that could not be asked on stderr."""
    for line in unusable_lines(end.results):
        print_note(line)
    for line in result_lines(end.results, end.published):
        click.echo(line)


def prints(worker: str | None) -> bool:
    """Whether this process prints the result; of those that a launcher started, the first one does.

    Args:
        worker: as of `EvalSettings`.
    """
    return launched_rank(os.environ, worker) in (None, 0)


def end_if_incomplete(ends: Mapping[Path, EvalEnd], *, reports: bool) -> None:
    """End the process with the exit code of a signal, or with 1 if questions could not be asked.

    Args:
        ends: by the folder of answers and scores.
        reports: whether this process reports questions that could not be asked, see `prints`. An exit code of another
            process would make a launcher end the one that reports.
    """
    for end in ends.values():
        if end.interrupted_by:
            say("stopped; run the same command again to resume")
            end_process(128 + end.interrupted_by)
    for out, end in ends.items():
        if end.num_unusable and reports:
            fail(
                f"{format_count(end.num_unusable, 'question')} could not be asked, see {out / 'results.json'}; restore "
                "what is missing and run the same command again, which asks these only"
            )
