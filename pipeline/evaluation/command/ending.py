"""What `alignkd eval` prints at its end, and its exit code."""

from collections.abc import Mapping
from pathlib import Path

import click

from alignkd.pipeline.console.errors import fail
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.evaluation.run import EvalEnd
from alignkd.pipeline.evaluation.table import result_lines, unusable_lines
from alignkd.teacher_dump.operation.stops import end_process


def print_result(end: EvalEnd) -> None:
    """Print the scores; questions that could not be asked on stderr."""
    for line in unusable_lines(end.results):
        click.echo(line, err=True)
    for line in result_lines(end.results, end.published):
        click.echo(line)


def end_if_incomplete(ends: Mapping[Path, EvalEnd]) -> None:
    """End the process with the exit code of a signal, or with 1 if questions could not be asked.

    Args:
        ends: by the folder of answers and scores.
    """
    for end in ends.values():
        if end.interrupted_by:
            say("stopped; run the same command again to resume")
            end_process(128 + end.interrupted_by)
    for out, end in ends.items():
        if end.num_unusable:
            fail(
                f"{end.num_unusable} questions could not be asked, see {out / 'results.json'}; restore what is missing "
                "and run the same command again, which asks these only"
            )
