"""Write weights as the original's tools expect them: `model.safetensors`, or numbered shards and an index.

llama.cpp's conversion of MobileVLM V2 reads the vision projector from one file (`llava_surgery_v2.py`), and the rest
from `model.safetensors` or `model-00001-of-*.safetensors`. So a shard never ends within the projector.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from alignkd.disk.whole_file import write_whole
from alignkd.vlm.weights.tensor_file import save_tensors

MAX_SHARD_BYTES = 5_000_000_000
INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}
_KEPT_TOGETHER = "model.mm_projector."


def write_weights(
    weights: Mapping[str, Tensor], folder: Path, *, dtype: torch.dtype | None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> list[Path]:
    """Write `weights` as safetensors, in one file if they fit, and remove other safetensors weights from the folder.

    Extra memory: at most one shard; none for tensors on the CPU in the right dtype.

    Args:
        weights: floating-point tensors on any device, in the order of the model.
        dtype: dtype of the saved weights; None keeps each tensor's.
        max_shard_bytes: maximum size of a file; a single tensor (or the projector) may exceed it.

    Returns:
        The weight files written.
    """
    assert all(tensor.is_floating_point() for tensor in weights.values()), "quantised weights are never saved"
    shards = list(_shards(weights, dtype, max_shard_bytes))
    names = _file_names(len(shards))
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: weights[key].detach().to("cpu", dtype or weights[key].dtype).contiguous() for key in keys}
        save_tensors(tensors, folder / name, metadata=METADATA)  # processes that map the old file keep the old bytes
    _write_index(folder, {key: name for name, keys in zip(names, shards, strict=True) for key in keys}, weights, dtype)
    for stale in set(folder.glob("model-*-of-*.safetensors")) | {folder / "model.safetensors"}:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
    return [folder / name for name in names]


def _shards(weights: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> Iterator[list[str]]:
    """Keys of each file, in the order of `weights`."""
    shard: list[str] = []
    filled = 0
    for keys in _inseparable(weights):
        size = sum(_num_bytes(weights[key], dtype) for key in keys)
        if shard and filled + size > limit:
            yield shard
            shard, filled = [], 0
        shard += keys
        filled += size
    if shard:
        yield shard


def _inseparable(keys: Iterable[str]) -> Iterator[list[str]]:
    """Groups of keys for one file: the projector's keys together, every other key alone."""
    for together, group in groupby(keys, key=lambda key: key.startswith(_KEPT_TOGETHER)):
        members = list(group)
        yield from [members] if together else [[key] for key in members]


def _file_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(
    folder: Path, weight_map: Mapping[str, str], weights: Mapping[str, Tensor], dtype: torch.dtype | None
) -> None:
    if len(set(weight_map.values())) == 1:
        (folder / INDEX).unlink(missing_ok=True)
        return
    total_size = sum(_num_bytes(tensor, dtype) for tensor in weights.values())
    document = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    write_whole(folder / INDEX, json.dumps(document, indent=2) + "\n")


def _num_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize
