"""`alignkd layers`: how informative each attention layer of a teacher is."""

from pathlib import Path
from typing import Literal

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.interrupts import ends_on_interrupt
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.picture_file import LAYERS, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json, print_note


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe with several stages.")
@click.option(
    "--samples", "count", type=click.IntRange(1, 1 << 16), default=100, show_default=True, help="Number of samples."
)
@click.option(
    "--pairs",
    type=click.Choice(["tqv", "vqv"]),
    default="tqv",
    show_default=True,
    help="Attention of text queries, or of vision queries, to vision tokens.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Seed of the choice of samples."
)
@click.option("--out", type=click.Path(path_type=Path), help=f"Draw the figures and maps to this PNG file. {REPLACES}")
@force_option
@json_option
@clean_errors
def layers(
    config: Path,
    stage: str | None,
    count: int,
    pairs: Literal["tqv", "vqv"],
    seed: int,
    out: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare the attention layers of a teacher.

    Runs the teacher of CONFIG on some samples with images, and shows for each layer how much attention falls on vision
    tokens, how sharp it is, how much it depends on the question, and its bytes in a store. Recommends layers, and
    prints the lines of `store` and `train` that store and compare them. Nothing is stored; CONFIG needs no section
    store. What each figure means: docs/choosing-targets.md.

    Example: alignkd layers run.yaml --samples 100 --out layers.png
    """
    with heavy_imports():
        from alignkd.pipeline.config.recipes import load_stage
        from alignkd.pipeline.layers.compare import compare_layers
        from alignkd.pipeline.layers.table import layers_json, layers_lines, unusable_lines

    settings = load_stage(config, "layers", stage)
    if out is not None:
        reads = [config, *(path for data in settings.data for path in (data.conversations, data.images))]
        closed = [] if isinstance(settings.store.path, str) else [settings.store.path]
        claim_file("--out", out, is_drawn_by(LAYERS), reads=reads, closed=closed, force=force)
    with ends_on_interrupt():
        compared = compare_layers(settings, count, pairs=pairs, seed=seed)
        if out is not None:
            from alignkd.pipeline.layers.picture import draw_layers

            draw_layers(compared, out)
    for line in unusable_lines(compared):
        print_note(line)
    if as_json:
        print_json(layers_json(compared) | ({} if out is None else {"picture": str(out)}))
        return
    click.echo("\n".join(layers_lines(compared)))
    if out is not None:
        click.echo(f"wrote {out}")
