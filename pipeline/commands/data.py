"""`alignkd data`: inspect a data set before anything is computed from it."""

from pathlib import Path
from typing import Literal

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.picture_file import DATA_STATS, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json

DEFAULT_CHECKPOINT = "mtgv/MobileVLM_V2-1.7B"


def token_limits(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """`2048,512` -> (512, 2048): ascending, without duplicates."""
    try:
        limits = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        limits = (0,)
    if limits[0] < 1:
        raise click.BadParameter(f"{value!r}, expected whole numbers above 0, separated by commas, such as 512,2048")
    return limits


@click.group()
@click.pass_context
def data(context: click.Context) -> None:
    """Inspect training data.

    Example: alignkd data stats train.json --images images
    """
    context.with_resource(ends_on_interrupt())


@data.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images; without it no image is read.")
@click.option("--template", type=click.Choice(["plain", "v1"]), help="Prompt template of MobileVLM; by default v1.")
@click.option("--max-tokens", callback=token_limits, default="512,2048", show_default=True, help="Limits to compare.")
@click.option(
    "--checkpoint",
    default=DEFAULT_CHECKPOINT,
    show_default=True,
    help="Model whose tokenizer is used; no weights are read.",
)
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@click.option(
    "--processor",
    type=click.Choice(["auto", "pil"]),
    default="auto",
    show_default=True,
    help="Image processor of models of transformers; pil needs no torchvision.",
)
@click.option("--no-decode", is_flag=True, help="Open each image without decoding it.")
@click.option("--workers", type=click.IntRange(min=1), help="Number of processes; by default the number of CPUs.")
@click.option(
    "--png", type=click.Path(path_type=Path), help=f"Draw the distribution of tokens to this file. {REPLACES}"
)
@click.option(
    "--list",
    "listing",
    type=click.Path(path_type=Path),
    help="Write every dropped sample and its reason as JSON lines.",
)
@force_option
@json_option
@clean_errors
def stats(
    files: tuple[Path, ...],
    images: Path | None,
    template: str | None,
    max_tokens: tuple[int, ...],
    checkpoint: str,
    vision_config: Path | None,
    processor: Literal["auto", "pil"],
    no_decode: bool,
    workers: int | None,
    png: Path | None,
    listing: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Count samples, tokens and dropped samples.

    Figures are per source data set, which is the first folder of the image path. Every sample is tokenised and every
    image is read once, exactly as in a dump. One sample is printed as the model gets it, with the supervised text
    marked. Unusable samples are counted and named; the exit code is still 0.

    Example: alignkd data stats train.json --images images --max-tokens 512,2048
    """
    from alignkd.pipeline.data.figures import is_listing
    from alignkd.pipeline.data.process_pool import usable_cpus
    from alignkd.pipeline.data.report import report_lines
    from alignkd.pipeline.data.stats import StatsJob, data_stats

    reads = (*files, images, checkpoint, vision_config)
    if listing is not None:
        claim_file("--list", listing, is_listing, reads=reads, force=force)
    if png is not None:
        claim_file("--png", png, is_drawn_by(DATA_STATS), reads=(*reads, listing), force=force)
    job = StatsJob(
        conversations=files,
        images=images,
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
        from alignkd.pipeline.data.picture import draw_lengths

        draw_lengths(found, png)
    if as_json:
        print_json(found.to_json())
        return
    for line in report_lines(found):
        click.echo(line)
    for path in (listing, png):
        if path is not None:
            click.echo(f"wrote {path}")
