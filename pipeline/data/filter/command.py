"""`alignkd data filter`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.numbers import FiniteFloat
from alignkd.pipeline.console.outputs import force_option
from alignkd.pipeline.console.printing import json_option
from alignkd.pipeline.data.filter.filters import Filters
from alignkd.pipeline.data.options import Answers, listing_option, reading_options


@click.command("filter")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="JSON lines to write; gzipped if it ends in .gz."
)
@click.option(
    "--min-logprob-per-token", type=FiniteFloat(max=0), help="Lowest mean log-probability of a token (model)."
)
@click.option("--min-tokens", type=click.IntRange(min=0), help="Fewest tokens of an answer (model).")
@click.option("--max-tokens", type=click.IntRange(min=0), help="Most tokens of an answer (model).")
@click.option("--finished-only", is_flag=True, help="Drop answers that a length limit cut (model).")
@click.option("--min-characters", type=click.IntRange(min=0), help="Fewest characters of an answer.")
@click.option("--max-characters", type=click.IntRange(min=0), help="Most characters of an answer.")
@click.option(
    "--max-repetition", type=FiniteFloat(0, 1), help="Largest share of repeated runs of 4 words in an answer."
)
@click.option("--dedupe", is_flag=True, help="Drop samples with the images and turns of an earlier one.")
@click.option(
    "--to", type=click.Choice(["llava", "messages"]), default="llava", show_default=True, help="Dialect of the entries."
)
@reading_options
@listing_option("Write every sample that is not written and its reason as JSON lines.")
@force_option
@json_option
@clean_errors
def filter_command(
    files: tuple[Path, ...],
    out: Path,
    min_logprob_per_token: float | None,
    min_tokens: int | None,
    max_tokens: int | None,
    finished_only: bool,
    min_characters: int | None,
    max_characters: int | None,
    max_repetition: float | None,
    dedupe: bool,
    to: Literal["llava", "messages"],
    images: Path | None,
    role: Mapping[str, str],
    system: str | None,
    answers: Answers,
    listing: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the samples whose answers pass all filters.

    FILE is a folder that `alignkd generate` wrote, or any data set. Options with (model) hold for answers that a model
    wrote. A sample is dropped if one of its answers does not pass. What each filter drops is counted.

    Example: alignkd data filter generated --out answers.jsonl --finished-only --min-logprob-per-token -1.5
    """
    from alignkd.pipeline.data.convert.command_run import convert_and_print
    from alignkd.pipeline.data.convert.convert import ConvertJob
    from alignkd.pipeline.data.convert.report import next_step_lines
    from alignkd.pipeline.data.opening import data_sets

    filters = Filters(
        min_logprob_per_token=min_logprob_per_token,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        finished_only=finished_only,
        min_characters=min_characters,
        max_characters=max_characters,
        max_repetition=max_repetition,
        dedupe=dedupe,
    )
    _check(filters)
    job = ConvertJob(
        data=data_sets(files, images=images, roles=role, system=system, answers=answers),
        out=out,
        dialect=to,
        filters=filters,
        listing=listing,
    )
    convert_and_print(job, force=force, as_json=as_json, next_step=lambda found: next_step_lines(out, images, found))


def _check(filters: Filters) -> None:
    if not filters.given:
        raise click.UsageError("no filter is given, so nothing would be dropped; give one, see --help")
    for unit, least, most in (
        ("tokens", filters.min_tokens, filters.max_tokens),
        ("characters", filters.min_characters, filters.max_characters),
    ):
        if least is not None and most is not None and least > most:
            raise click.UsageError(
                f"--min-{unit} is {least}, more than --max-{unit} {most}, so nothing would pass; lower it"
            )
