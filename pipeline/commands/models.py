"""`alignkd models`: the sizes of the MobileVLM V2 family, or of one's own checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console import clean_errors, format_bytes, json_option, print_json

if TYPE_CHECKING:
    from alignkd.vlm.model.sizes import ModelSize


@click.command()
@click.argument("checkpoint", required=False)
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@json_option
@clean_errors
def models(checkpoint: str | None, vision_config: Path | None, as_json: bool) -> None:
    """Shapes and sizes of the official models.

    With CHECKPOINT those of a checkpoint, whose weights are not read.

    Example: alignkd models mtgv/MobileVLM_V2-1.7B
    """
    from alignkd.vlm.model.sizes import MEMBERS, family_config, model_size

    if checkpoint is None:
        sizes = [model_size(name, family_config(name)) for name in MEMBERS]
    else:
        sizes = [size_of_checkpoint(checkpoint, vision_config)]
    if as_json:
        print_json([asdict(size) for size in sizes])
    else:
        click.echo(table(sizes))


def size_of_checkpoint(checkpoint: str, vision_config: Path | None) -> ModelSize:
    """The size of a folder or hub id from its `config.json` alone; the family's own need not be fetched."""
    from alignkd.pipeline.plan.models import config_of
    from alignkd.vlm.model.sizes import model_size

    return model_size(checkpoint, config_of(checkpoint, vision_config))


def table(sizes: Sequence[ModelSize]) -> str:
    """One column per model, one line per figure."""
    lines: list[tuple[str, Callable[[ModelSize], str]]] = [
        ("", lambda size: Path(size.name).name),
        ("layers", lambda size: str(size.num_layers)),
        ("hidden size", lambda size: str(size.hidden_size)),
        ("heads", lambda size: str(size.num_heads)),
        ("key-value heads", lambda size: str(size.num_key_value_heads)),
        ("intermediate size", lambda size: str(size.intermediate_size)),
        ("vocabulary", lambda size: str(size.vocab_size)),
        ("max positions", lambda size: str(size.max_positions)),
        ("image pixels", lambda size: f"{size.image_size} x {size.image_size}"),
        ("vision tokens", lambda size: str(size.vision_tokens)),
        ("LLM parameters", lambda size: f"{size.parameters['language_model']:,}"),
        ("vision tower", lambda size: f"{size.parameters['vision_tower']:,}"),
        ("projector", lambda size: f"{size.parameters['projector']:,}"),
        ("all parameters", lambda size: f"{size.parameters['total']:,}"),
        ("weights float32", lambda size: format_bytes(size.weight_bytes["float32"])),
        ("weights bfloat16", lambda size: format_bytes(size.weight_bytes["bfloat16"])),
        ("teacher int8", lambda size: format_bytes(size.weight_bytes["int8"])),
        ("teacher nf4", lambda size: format_bytes(size.weight_bytes["nf4"])),
    ]
    rows = [[label, *(cell(size) for size in sizes)] for label, cell in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(sizes) + 1)]
    shown = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    towers = {size.vision_tower for size in sizes}
    return "\n".join([*(line.rstrip() for line in shown), f"vision tower: {', '.join(sorted(towers))}"])
