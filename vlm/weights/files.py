"""Read weight files: safetensors or `.bin`, single or sharded, one tensor at a time; only tensors are unpickled."""

import hashlib
import pickle
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkd.disk.opening import check_readable
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError, one_line, unreadable
from alignkd.vlm.weights.tensor_file import open_tensors

# In order of preference: `.bin` files are ignored if a folder also holds safetensors.
FORMATS = (("model", ".safetensors"), ("pytorch_model", ".bin"))

Shape = tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint: those in the index, or the single file.

    Raises:
        InputError: no weights, or the index is malformed, names a file outside the folder or a missing file.
    """
    for stem, suffix in FORMATS:
        index = folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            return _indexed_files(index, suffix)
        if (folder / f"{stem}{suffix}").is_file():
            return [folder / f"{stem}{suffix}"]
    raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin (nor their index); finish the download")


def weight_shapes(file: Path) -> dict[str, Shape]:
    """Name -> shape of every tensor of a weight file; no weights are read.

    Raises:
        InputError: the file cannot be opened, is damaged, or holds other objects than tensors.
    """
    with _named_errors(file):
        if file.suffix == ".safetensors":
            with open_tensors(file) as opened:
                return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
        return {key: tuple(tensor.shape) for key, tensor in _load_bin(file).items()}


def iter_weights(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a weight file as a view of the mapped file; copy a tensor to keep it.

    Raises:
        InputError: the file cannot be opened, is damaged, or holds other objects than tensors.
    """
    with _named_errors(file):
        if file.suffix == ".safetensors":
            with open_tensors(file) as opened:
                for key in opened.keys():  # noqa: SIM118
                    yield key, opened.get_tensor(key)
        else:
            tensors = _load_bin(file)
            for key in list(tensors):
                yield key, tensors.pop(key)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by name, as stored."""
    return {key: tensor.clone() for file in weight_files(folder) for key, tensor in iter_weights(file)}


def _indexed_files(index: Path, suffix: str) -> list[Path]:
    document = read_json(index)
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"{index}: no 'weight_map' of tensor names to file names in it; download it again")
    files = sorted(set(names.values()))
    # only names in this folder and format: an index must not lead to other folders, nor from safetensors to a pickle
    strange = [name for name in files if Path(name).name != name or not name.endswith(suffix)]
    if strange:
        raise InputError(
            f"{index}: names {one_line(', '.join(strange))[:200]}, expected {suffix} files next to it; "
            "take the checkpoint from a source you trust"
        )
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise InputError(f"{index}: names {', '.join(missing)}, which does not exist; finish the download")
    return [index.parent / name for name in files]


def _load_bin(file: Path) -> dict[str, Tensor]:
    """Load tensors only (`weights_only`): other objects in the pickle are refused before they are built."""
    # Files older than torch 1.6 are not zip archives and cannot be mapped.
    loaded: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{file}: not a mapping of names to tensors; take the checkpoint's own weight file")
    return loaded


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    try:
        check_readable(file)
    except OSError as error:
        raise unreadable(file, error) from error
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{file}: damaged, or holds other objects than tensors; no code in it was run ({one_line(error)[:160]}); "
            "download it again from a source you trust"
        ) from error
    except Exception as error:  # a parser over damaged bytes fails in any way
        raise InputError(f"{file}: damaged weight file ({one_line(error)[:120]}); download it again") from error


def files_fingerprint(files: Iterable[Path]) -> str:
    """sha256 over the sha256 of each file, in this order; 64 hex digits. Every byte is read."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
