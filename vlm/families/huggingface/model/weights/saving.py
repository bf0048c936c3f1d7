"""Writing a model of transformers in the layout of the hub, with the tokenizer and processor files of its source."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import written_whole
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.model.quiet import quiet
from alignkd.vlm.weights.files import weight_files, weight_shapes
from alignkd.vlm.weights.hub import PROCESSOR_FILES, TOKENIZER_FILES
from alignkd.vlm.weights.tensor_file import system_errors

MAX_SHARD_SIZE = "5GB"
COPIED_FILES = ("preprocessor_config.json", *TOKENIZER_FILES, *PROCESSOR_FILES)
# One of them is enough for a tokenizer.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def save_model(model: Any, folder: Path, *, processor_from: Path) -> None:
    """Write weights, configurations, and the files of tokenizer and processor.

    Weights have the names that the hub's checkpoints have. `config.json` records their dtype.

    Args:
        model: of transformers.
        processor_from: checkpoint folder to copy the files of tokenizer and processor from.

    Raises:
        OSError: a file cannot be written.
    """
    assert all(value.is_floating_point() for value in model.parameters()), "quantised weights are never saved"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as aside, quiet(), system_errors(folder):
        model.save_pretrained(aside, max_shard_size=MAX_SHARD_SIZE)
        written = sorted(Path(aside).iterdir())
        for file in written:
            _move(file, folder / file.name)
    _remove_other_weights(folder, {file.name for file in written})
    if processor_from.resolve() != folder.resolve():
        for name in present_files(processor_from):
            shutil.copyfile(processor_from / name, folder / name)


def is_complete(folder: Path, *, processor_from: Path) -> bool:
    """Whether a folder holds everything that `save_model` writes, in files that can be opened."""
    try:
        config = read_json(folder / "config.json")
        for file in weight_files(folder):
            weight_shapes(file)
    except (InputError, OSError):
        return False
    copied = present_files(processor_from) or [name for name in _VOCABULARIES if (folder / name).is_file()]
    return isinstance(config, dict) and bool(copied) and all((folder / name).is_file() for name in copied)


def present_files(folder: Path) -> list[str]:
    """Names of the files of tokenizer and processor that a checkpoint has."""
    found = (file for pattern in COPIED_FILES for file in sorted(folder.glob(pattern)))
    return list(dict.fromkeys(file.name for file in found if file.is_file()))


def _move(file: Path, target: Path) -> None:
    """Replace `target` in one step, with the mode of the umask: safetensors gives its files another one."""
    with written_whole(target) as aside:
        file.replace(aside)


def _remove_other_weights(folder: Path, written: set[str]) -> None:
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"):
        for stale in folder.glob(pattern):
            if stale.name not in written:
                stale.unlink()
