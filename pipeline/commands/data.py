"""`alignkd data`: inspect and convert data sets before anything is computed from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.picture_file import DATA_STATS, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json
from alignkd.pipeline.data.filter.command import filter_command
from alignkd.pipeline.data.options import (
    Answers,
    files_of,
    listing_option,
    model_options,
    pairs_option,
    reading_options,
    token_limits,
)

DEFAULT_CHECKPOINT = "mtgv/MobileVLM_V2-1.7B"


@click.group()
@click.pass_context
def data(context: click.Context) -> None:
    """Inspect and convert training data.

    Example: alignkd data stats train.json --images images
    """
    context.with_resource(ends_on_interrupt())


data.add_command(filter_command)


@data.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@reading_options
@pairs_option
@model_options(DEFAULT_CHECKPOINT)
@click.option("--max-tokens", callback=token_limits, default="512,2048", show_default=True, help="Limits to compare.")
@click.option("--no-decode", is_flag=True, help="Open each image without decoding it.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes; by default the number of CPUs.")
@click.option(
    "--png", type=click.Path(path_type=Path), help=f"Draw the distribution of tokens to this file. {REPLACES}"
)
@listing_option("Write every dropped sample and its reason as JSON lines.")
@force_option
@json_option
@clean_errors
def stats(
    files: tuple[Path, ...],
    images: Path | None,
    role: Mapping[str, str],
    system: str | None,
    answers: Answers,
    pairs: bool,
    template: str | None,
    checkpoint: str,
    vision_config: Path | None,
    processor: Literal["auto", "pil"],
    max_tokens: tuple[int, ...],
    no_decode: bool,
    workers: int | None,
    png: Path | None,
    listing: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Count samples, tokens and dropped samples.

    FILE is JSON, JSON lines (also gzipped), Parquet, a tar of WebDataset, a folder of them, or a quoted pattern.

    Figures are per source, which is the first folder of the image path, and per FILE. Every sample is tokenised and
    every image is read once, exactly as in a dump. One sample is printed as the model gets it, with the supervised text
    marked. Unusable samples are counted and named; the exit code is still 0.

    Example: alignkd data stats train.json --images images --max-tokens 512,2048
    """
    from alignkd.pipeline.data.stats.figures import is_listing
    from alignkd.pipeline.data.stats.process_pool import usable_cpus
    from alignkd.pipeline.data.stats.report import report_lines
    from alignkd.pipeline.data.stats.stats import StatsJob, data_stats

    reads = (*files_of(files), images, checkpoint, vision_config)
    if listing is not None:
        claim_file("--list", listing, is_listing, reads=reads, force=force)
    if png is not None:
        claim_file("--png", png, is_drawn_by(DATA_STATS), reads=(*reads, listing), force=force)
    job = StatsJob(
        conversations=files,
        images=images,
        roles=role,
        system=system,
        answers=answers,
        pairs=pairs,
        template=template,
        max_tokens=max_tokens,
        checkpoint=checkpoint,
        vision_config=vision_config,
        processor=processor,
        decode=not no_decode,
        workers=workers or usable_cpus(),
        listing=listing,
    )
    found = data_stats(job)
    if png is not None:
        from alignkd.pipeline.data.stats.picture import draw_lengths

        draw_lengths(found, png)
    if as_json:
        print_json(found.to_json())
        return
    for line in report_lines(found):
        click.echo(line)
    for path in (listing, png):
        if path is not None:
            click.echo(f"wrote {path}")


@data.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--index", type=click.IntRange(min=0), help="Number of the sample, from 0; by default 0.")
@click.option("--id", "sample_id", help="Id of the sample; the first one that has it is shown.")
@reading_options
@pairs_option
@model_options(None)
@json_option
@clean_errors
def show(
    file: Path,
    index: int | None,
    sample_id: str | None,
    images: Path | None,
    role: Mapping[str, str],
    system: str | None,
    answers: Answers,
    pairs: bool,
    template: str | None,
    checkpoint: str | None,
    vision_config: Path | None,
    processor: Literal["auto", "pil"],
    as_json: bool,
) -> None:
    """Show one sample: its place, turns, images and prompt.

    With --checkpoint, the prompt is printed as the model gets it, with the supervised text marked and vision tokens as
    their number. The exit code of an unusable sample is 0, and its problem is printed.

    Example: alignkd data show 'data/train-*.parquet' --index 7 --checkpoint Qwen/Qwen3-VL-2B-Instruct
    """
    from dataclasses import asdict

    from alignkd.pipeline.data.opening import data_sets, open_with_progress
    from alignkd.pipeline.data.show import index_of_id, show_lines, shown_sample

    if index is not None and sample_id is not None:
        raise click.UsageError("--index and --id both name a sample; give one of them")
    (chosen,) = data_sets([file], images=images, roles=role, system=system, answers=answers, pairs=pairs)
    source = open_with_progress(chosen)
    number = index or 0 if sample_id is None else index_of_id(source, sample_id)
    builder = None
    if checkpoint is not None:
        from alignkd.vlm.families.open import open_checkpoint

        opened = open_checkpoint(checkpoint, vision_config=vision_config, weights=False, processor=processor)
        builder = opened.preparation(template)
    found = shown_sample(source, number, builder)
    if as_json:
        print_json(asdict(found))
        return
    for line in show_lines(found):
        click.echo(line)


@data.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="JSON lines to write; gzipped if it ends in .gz."
)
@click.option("--images-out", type=click.Path(path_type=Path), help="Folder to write every image to, each once.")
@click.option(
    "--to", type=click.Choice(["llava", "messages"]), default="llava", show_default=True, help="Dialect of the entries."
)
@reading_options
@listing_option("Write every sample that is not written and its reason as JSON lines.")
@force_option
@json_option
@clean_errors
def convert(
    files: tuple[Path, ...],
    out: Path,
    images_out: Path | None,
    to: Literal["llava", "messages"],
    images: Path | None,
    role: Mapping[str, str],
    system: str | None,
    answers: Answers,
    listing: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write data sets of any format as one file of JSON lines.

    Roles, system prompts and answers that are not trained on keep their meaning. Images inside data files need
    --images-out; their names there are the SHA-256 of their content. Unusable samples are counted by reason, and the
    exit code is still 0.

    Example: alignkd data convert 'data/train-*.parquet' --out train.jsonl --images-out images
    """
    from alignkd.pipeline.data.convert.command_run import convert_and_print
    from alignkd.pipeline.data.convert.convert import ConvertJob
    from alignkd.pipeline.data.opening import data_sets

    job = ConvertJob(
        data=data_sets(files, images=images, roles=role, system=system, answers=answers),
        out=out,
        dialect=to,
        images_out=images_out,
        listing=listing,
    )
    convert_and_print(job, force=force, as_json=as_json)
