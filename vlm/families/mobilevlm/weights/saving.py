"""Writing a model in the official layout: weights, `config.json`, tokenizer files and the vision tower's config."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignkd.disk.whole_file import write_whole
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.weights.writer import MAX_SHARD_BYTES, write_weights
from alignkd.vlm.weights.hub import TOKENIZER_FILES

VISION_CONFIG_FILES = ("config.json", "preprocessor_config.json")


def save_model(
    model: MobileVLM,
    folder: Path,
    *,
    tokenizer_from: Path,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `model` in the official layout: names, shapes and `config.json` as the original saves them.

    `config.json` is the one that the model was loaded with; only `torch_dtype` follows the saved weights. llama.cpp's
    scripts for MobileVLM V2 can read the result (see `alignkd.vlm.families.mobilevlm.weights.writer`).

    Args:
        tokenizer_from: checkpoint folder to copy the tokenizer files from, and the vision tower's config if that is in
            a folder inside it.
        dtype: dtype of the saved weights; None keeps the model's.
        max_shard_bytes: larger models are written as numbered shards with an index.

    Raises:
        OSError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(model.state_dict(), folder, dtype=dtype, max_shard_bytes=max_shard_bytes)
    saved_dtype = str(dtype or next(model.parameters()).dtype).removeprefix("torch.")
    raw: dict[str, Any] = {**model.config.raw, "torch_dtype": saved_dtype}
    write_whole(folder / "config.json", json.dumps(raw, indent=2, sort_keys=True) + "\n")
    if tokenizer_from.resolve() == folder.resolve():
        return
    _copy_files(tokenizer_from, folder, (*TOKENIZER_FILES, "generation_config.json"))
    tower = Path(str(raw.get("mm_vision_tower")))
    is_inside = not tower.is_absolute() and ".." not in tower.parts
    if is_inside and (tokenizer_from / tower / "config.json").is_file():
        (folder / tower).mkdir(parents=True, exist_ok=True)
        _copy_files(tokenizer_from / tower, folder / tower, VISION_CONFIG_FILES)


def _copy_files(source: Path, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
