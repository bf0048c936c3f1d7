"""`alignkd generate`: one worker that writes a teacher's answers, or the status of all of them."""

from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json, print_note


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--worker", metavar="RANK/COUNT", help="Which of several workers this is; a launcher sets it itself.")
@click.option("--retry-unusable", is_flag=True, help="Redo shards whose unusable samples can be read by now.")
@click.option(
    "--status",
    "output",
    metavar="OUTPUT",
    type=click.Path(path_type=Path),
    help="Show the progress of the generation into OUTPUT; change nothing.",
)
@json_option
@clean_errors
def generate(config: Path | None, worker: str | None, retry_unusable: bool, output: Path | None, as_json: bool) -> None:
    """Let the teacher answer the questions of a data set.

    The answers are written as a data set of their own, with the name of the teacher and the log-probability of each
    answer; dump, data filter and train take it. You can stop the command at any time and run it again: only shards
    that are not written are computed. Signals and several workers are as with dump: docs/running.md.

    Example: alignkd generate questions.yaml
    """
    if (config is None) == (output is None):
        raise click.UsageError("give either CONFIG, to generate answers, or --status OUTPUT, to show the progress")
    if retry_unusable and output is not None:
        raise click.UsageError("--retry-unusable needs CONFIG; --status changes nothing")
    if output is not None:
        _show_status(output, as_json)
        return
    assert config is not None
    _run_worker(config, worker, as_json, retry_unusable)


def _show_status(output: Path, as_json: bool) -> None:
    from alignkd.pipeline.runs.teacher.generate_status import generate_status, status_lines

    status = generate_status(output)
    if as_json:
        print_json(asdict(status))
        return
    for line in status_lines(status):
        click.echo(line)


def _run_worker(config: Path, worker: str | None, as_json: bool, retry_unusable: bool) -> None:
    """Run one worker, print its result, and exit with the signal's code if one stopped it."""
    with heavy_imports():
        from alignkd.pipeline.config.sections.generate_config import load_answers_config
        from alignkd.pipeline.runs.teacher.generate import result_lines, run_generate, unusable_lines
        from alignkd.pipeline.runs.teacher.shards_report import end_if_interrupted, ending_when_abandoned

    with ending_when_abandoned():
        settings = load_answers_config(config)
        end = run_generate(settings, worker, retry_unusable=retry_unusable)
    if as_json:
        print_json({"worker": str(end.worker), **asdict(end.result)})
    else:
        for line in unusable_lines(end.result, settings.generate.output):
            print_note(line)
        for line in result_lines(end.result, settings.generate.output, config):
            click.echo(line)
    end_if_interrupted(end.interrupted_by)
