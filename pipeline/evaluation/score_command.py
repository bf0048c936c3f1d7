"""`alignkd eval score`: the score of an answers file; imports no torch."""

import json
from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.evaluation.folder import LAYOUTS
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.option("--benchmark", "name", type=click.Choice(list(LAYOUTS)), required=True, help="The benchmark.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the benchmark, or the folder that holds it (docs/evaluation.md).",
)
@click.option(
    "--answers",
    "answers_file",
    type=click.Path(path_type=Path),
    required=True,
    help="JSON lines in the format of the original scripts.",
)
@click.option(
    "--as-original",
    is_flag=True,
    help="Score missing, doubled and shuffled answers, and an annotation of another release, as the original scripts.",
)
@click.option(
    "--list",
    "listing",
    type=click.Path(path_type=Path),
    help=f"Write how each answer was read to this file as JSON lines. {REPLACES}",
)
@force_option
@json_option
@clean_errors
def score(
    name: str,
    data: Path,
    answers_file: Path,
    as_original: bool,
    listing: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Score answers to a benchmark.

    The answers may come from any program that writes the format of the original scripts. The number is that of the
    original scripts. Answers for which theirs would be wrong without notice are refused, see --as-original.

    Example: alignkd eval score --benchmark pope --data benchmark_data --answers pope/answers.jsonl
    """
    from alignkd.evaluation.answers import read_answers
    from alignkd.evaluation.benchmark import BENCHMARKS
    from alignkd.evaluation.errors import AnswersError
    from alignkd.evaluation.folder import benchmark_folder
    from alignkd.evaluation.score import is_items_file
    from alignkd.vlm.errors import InputError

    with ends_on_interrupt():
        if listing is not None:
            claim_file("--list", listing, is_items_file, reads=(data, answers_file), force=force)
        folder, answers = benchmark_folder(data, name), read_answers(answers_file)
        try:
            scored = BENCHMARKS[name].score(folder, answers, as_original=as_original)
        except AnswersError as error:
            raise InputError(f"{answers_file}: {error}") from None
        if listing is not None:
            write_whole(listing, "".join(json.dumps(item.as_json()) + "\n" for item in scored.items))
    if as_json:
        print_json(scored.as_json())
        return
    for line in scored.lines():
        click.echo(line)
    for note in scored.notes:
        click.echo(f"note: {note}")
    if listing is not None:
        click.echo(f"wrote {listing}")
