"""Which family a checkpoint belongs to."""

from importlib import import_module
from pathlib import Path

from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint, CheckpointFolder, Opener
from alignkd.vlm.settings import ProcessorKind
from alignkd.vlm.weights.hub import resolve_checkpoint

# The folders of the families, in the order in which they are asked; each has a function `open_folder` in `opener.py`.
FAMILIES = ("mobilevlm", "huggingface")


def open_checkpoint(
    name: str | Path,
    *,
    vision_config: Path | None = None,
    weights: bool = True,
    processor: ProcessorKind = "auto",
) -> Checkpoint:
    """Find a checkpoint; a hub id is fetched, or taken from the hub's cache. Only its family is imported.

    Args:
        name: folder, or hub id (`org/name`, `org/name@revision`).
        vision_config: folder with the vision tower's `config.json`, for checkpoints that only name their tower.
        weights: False fetches configuration, tokenizer and processor; a hub id's weights are fetched when first used,
            by one more request.
        processor: see `CheckpointFolder`.

    Raises:
        InputError: neither a folder nor a model of the hub, incomplete, or of no family.
    """
    folder = resolve_checkpoint(name, weights=weights)
    path = folder / "config.json"
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise InputError(f"{path}: a JSON {type(raw).__name__}, expected a model's configuration; copy it again")
    found = CheckpointFolder(
        name=name, folder=folder, raw=raw, has_weights=weights, vision_config=vision_config, processor=processor
    )
    for family in FAMILIES:
        if (opened := _opener(family)(found)) is not None:
            return opened
    raise InputError(f"{path}: model_type {raw.get('model_type')!r} belongs to none of {', '.join(FAMILIES)}")


def _opener(family: str) -> Opener:
    """Imported late: a family's libraries may not be installed where another one is used."""
    opener: Opener = import_module(f"alignkd.vlm.families.{family}.opener").open_folder
    return opener
