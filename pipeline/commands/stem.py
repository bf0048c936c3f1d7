"""`alignkd stem`: the few tensors of a teacher that give alignment targets without storing them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from alignkd.pipeline.console import clean_errors, format_bytes, json_option, print_json
from alignkd.pipeline.outputs import REPLACES, claim_file, force_option

if TYPE_CHECKING:
    from alignkd.vlm.stem.file import StemInfo
    from alignkd.vlm.stem.stem import StemSizes

DTYPES = ("float32", "bfloat16", "float16")


@click.group()
def stem() -> None:
    """Alignment targets from the teacher's stem.

    A stem is the few tensors of a teacher that give attention and vision targets for no bytes on disk.
    """


@stem.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe of several.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help=f"The file to write. {REPLACES}")
@click.option("--lm-head", is_flag=True, help="With lm_head and final norm, for logits of stored hidden states.")
@click.option("--dtype", type=click.Choice(DTYPES), help="Of the stem; teacher.dtype by default.")
@force_option
@json_option
@clean_errors
def extract(
    config: Path, stage: str | None, out: Path, lm_head: bool, dtype: str | None, force: bool, as_json: bool
) -> None:
    """Write the stem of CONFIG's teacher to a file.

    A stem is projector, first layer's norm, W_q and W_k, and token embeddings.

    Example: alignkd stem extract run.yaml --out stem.safetensors
    """
    from alignkd.pipeline.config.recipes import load_stage
    from alignkd.vlm.hardware.devices import TORCH_DTYPES
    from alignkd.vlm.stem.extract import extract_stem
    from alignkd.vlm.stem.file import is_stem
    from alignkd.vlm.weights.checkpoint import Checkpoint

    teacher = load_stage(config, "dump", stage).teacher
    assert teacher is not None
    claim_file("--out", out, is_stem, reads=(config, teacher.checkpoint, teacher.vision_config), force=force)
    checkpoint = Checkpoint.open(teacher.checkpoint, vision_config=teacher.vision_config)
    info = extract_stem(checkpoint, out, dtype=TORCH_DTYPES[dtype or teacher.dtype], lm_head=lm_head)
    _report(info, as_json)


@stem.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@clean_errors
def show(file: Path, as_json: bool) -> None:
    """Show whose stem FILE holds and its size.

    No tensor is read.

    Example: alignkd stem show stem.safetensors --json
    """
    from alignkd.vlm.stem.file import read_stem_info

    _report(read_stem_info(file), as_json)


@stem.command()
@click.argument("model")
@click.option("--vision-config", type=click.Path(path_type=Path), help="Folder with the vision tower's config.json.")
@click.option("--lm-head", is_flag=True, help="With lm_head and final norm.")
@click.option("--dtype", type=click.Choice(DTYPES), default="bfloat16", show_default=True, help="Of the stem.")
@json_option
@clean_errors
def size(model: str, vision_config: Path | None, lm_head: bool, dtype: str, as_json: bool) -> None:
    """Compute the size of a stem of MODEL.

    Its config.json is enough.

    Example: alignkd stem size mtgv/MobileVLM_V2-7B
    """
    from alignkd.pipeline.plan.models import config_of
    from alignkd.vlm.hardware.devices import TORCH_DTYPES
    from alignkd.vlm.stem.stem import stem_sizes

    config = config_of(model, vision_config)
    found = _sizes(stem_sizes(config, TORCH_DTYPES[dtype], lm_head=lm_head))
    if as_json:
        print_json({"model": model, "dtype": dtype, "lm_head": lm_head, **found})
    else:
        click.echo("\n".join([f"stem of {model} in {dtype}", *_size_lines(found)]))


def _report(info: StemInfo, as_json: bool) -> None:
    sizes = _sizes(info.sizes, info.file_bytes)
    if as_json:
        head = {"file": str(info.path), "dtype": info.dtype, "lm_head": info.has_lm_head}
        print_json({**head, "fingerprint": dict(info.fingerprint), "tower": dict(info.tower), **sizes})
        return
    lines = [f"{info.path}: stem in {info.dtype}, {'with' if info.has_lm_head else 'without'} lm_head"]
    lines += [f"teacher's weights  {info.fingerprint.get('weights', 'not recorded')}"]
    lines += [f"its vision tower   {info.tower.get(info.dtype, 'not recorded')} ({info.dtype})"]
    click.echo("\n".join([*lines, *_size_lines(sizes)]))


def _sizes(sizes: StemSizes, file_bytes: int | None = None) -> dict[str, Any]:
    return {
        "disk_bytes": sizes.total if file_bytes is None else file_bytes,
        "device_bytes": sizes.device + sizes.lm_head,
        "device_bytes_of_lm_head": sizes.lm_head,
        "host_bytes": sizes.host,
        "memory_bytes": sizes.total,
    }


def _size_lines(sizes: dict[str, Any]) -> list[str]:
    names = {"on disk": "disk_bytes", "on the device": "device_bytes", "on the host": "host_bytes"}
    names["memory in total"] = "memory_bytes"
    return [f"{name:<17}  {format_bytes(sizes[key]):>10}" for name, key in names.items()]
