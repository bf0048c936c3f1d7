"""`alignkd stem`: the few tensors of a teacher that give alignment targets without storing them."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console.checkpoint_options import vision_config_option
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import REPLACES, claim_file, force_option
from alignkd.pipeline.console.printing import json_option, print_json

if TYPE_CHECKING:
    from alignkd.vlm.stem.file import StemInfo

DTYPES = ("float32", "bfloat16", "float16")
depth_option = click.option(
    "--depth", type=click.IntRange(min=1), help="Decoder layers whose attention the stem gives."
)


@click.group()
def stem() -> None:
    """Extract and inspect a teacher's stem.

    A stem is the few tensors of a teacher from which training computes attention and vision targets, so that the
    store needs no bytes for them: docs/stem.md.

    Example: alignkd stem size mtgv/MobileVLM_V2-7B
    """


@stem.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe with several stages.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help=f"The file to write. {REPLACES}")
@click.option("--lm-head", is_flag=True, help="Include lm_head and the final norm, for stored hidden states.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Dtype of the stem; by default teacher.dtype.")
@depth_option
@force_option
@json_option
@clean_errors
def extract(
    config: Path,
    stage: str | None,
    out: Path,
    lm_head: bool,
    dtype: str | None,
    depth: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the stem of CONFIG's teacher to a file.

    The stem consists of the projector, the token embeddings, and the decoder's first layers: of the last one norm, W_q
    and W_k only. Its depth is by default that of the store which CONFIG describes.

    Example: alignkd stem extract run.yaml --out stem.safetensors
    """
    from alignkd.pipeline.config.recipes import load_stage
    from alignkd.vlm.families.open import open_checkpoint
    from alignkd.vlm.hardware.devices import TORCH_DTYPES
    from alignkd.vlm.stem.extract import extract_stem
    from alignkd.vlm.stem.file import is_stem

    run = load_stage(config, "dump", stage)
    teacher = run.teacher
    assert teacher is not None
    claim_file("--out", out, is_stem, reads=(config, teacher.checkpoint, teacher.vision_config), force=force)
    checkpoint = open_checkpoint(teacher.checkpoint, vision_config=teacher.vision_config, processor=teacher.processor)
    depth = depth or run.store.stem_depth(checkpoint.config)
    info = extract_stem(checkpoint, out, dtype=TORCH_DTYPES[dtype or teacher.dtype], lm_head=lm_head, depth=depth)
    _print_info(info, as_json)


@stem.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@clean_errors
def show(file: Path, as_json: bool) -> None:
    """Show the teacher and the size of a stem FILE.

    No tensor is read.

    Example: alignkd stem show stem.safetensors --json
    """
    from alignkd.vlm.stem.file import read_stem_info

    _print_info(read_stem_info(file), as_json)


@stem.command()
@click.argument("model")
@vision_config_option
@click.option("--lm-head", is_flag=True, help="Include lm_head and the final norm.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Dtype of the stem.")
@depth_option
@json_option
@clean_errors
def size(model: str, vision_config: Path | None, lm_head: bool, dtype: str, depth: int | None, as_json: bool) -> None:
    """Compute the size of MODEL's stem.

    Only config.json is read.

    Example: alignkd stem size mtgv/MobileVLM_V2-7B
    """
    from alignkd.pipeline.models.stem import size_lines, sizes_of_stem

    sizes = sizes_of_stem(model, vision_config, dtype, lm_head=lm_head, depth=depth)
    if as_json:
        print_json({"model": model, "dtype": dtype, "lm_head": lm_head, **sizes})
    else:
        click.echo("\n".join([f"stem of {model} in {dtype}, depth {sizes['depth']}", *size_lines(sizes)]))


def _print_info(info: "StemInfo", as_json: bool) -> None:
    from alignkd.pipeline.models.stem import info_json, info_lines

    if as_json:
        print_json(info_json(info))
    else:
        click.echo("\n".join(info_lines(info)))
