"""From a teacher's checkpoint to its stem: only the tensors needed are read into memory, whatever the teacher's size.

Every byte of the weight files is hashed once, because the fingerprint that a store's manifest carries covers them all;
that takes time, but no memory.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from alignkd.vlm.errors import InputError
from alignkd.vlm.finite import check_finite
from alignkd.vlm.inputs.examples import ExampleBuilder
from alignkd.vlm.model.config import VLMConfig, load_config
from alignkd.vlm.stem.file import StemInfo, StemParts, stem_bytes, write_stem
from alignkd.vlm.stem.stem import stem_shapes
from alignkd.vlm.weights.checkpoint import load_example_builder, weights_fingerprint
from alignkd.vlm.weights.hub import resolve_checkpoint
from alignkd.vlm.weights.sources import WeightSource, tower_tensors, weight_sources
from alignkd.vlm.weights.tower_hash import settings_fingerprint, tower_hashes


def extract_stem(
    checkpoint: str | Path,
    out: Path,
    *,
    dtype: torch.dtype,
    lm_head: bool = False,
    vision_config: Path | None = None,
) -> StemInfo:
    """Write the stem of a checkpoint to the file `out`.

    Args:
        checkpoint: folder in the official layout, or hub id.
        dtype: of the stem's tensors; the teacher's own in the dump gives the same targets as the live teacher.
        lm_head: put `lm_head` and the final norm into it, for stores of hidden states that hold none.
        vision_config: folder with the vision tower's `config.json`, overriding `mm_vision_tower`.

    Raises:
        InputError: no usable checkpoint, a tensor that is missing, misshapen or not finite, or no folder for `out`.
    """
    return write_stem(out, _parts(checkpoint, dtype, lm_head, vision_config))


def extracted_bytes(checkpoint: str | Path, *, dtype: torch.dtype, vision_config: Path | None = None) -> bytes:
    """The file that `extract_stem` writes, without `lm_head`: the same bytes at every call, for a store to carry.

    Raises:
        InputError: as `extract_stem`.
    """
    return stem_bytes(_parts(checkpoint, dtype, False, vision_config))


def _parts(checkpoint: str | Path, dtype: torch.dtype, lm_head: bool, vision_config: Path | None) -> StemParts:
    folder = resolve_checkpoint(checkpoint)
    config = load_config(folder, vision_config=vision_config)
    sources = weight_sources(folder)
    return StemParts(
        weights=_read(folder, sources, stem_shapes(config, lm_head=lm_head), dtype),
        fingerprint=teacher_fingerprint(folder, config, vision_config),
        tower=tower_hashes(tower_tensors(folder, sources), config),
        config=config,
    )


def teacher_fingerprint(checkpoint: Path, config: VLMConfig, vision_config: Path | None) -> dict[str, str]:
    """The entries of a store's fingerprint that are the teacher's own.

    Not the template, which is the data's: one stem serves stages of several templates. Not the dtype, which a stem
    may choose.
    """
    builder = load_example_builder(checkpoint, template="v1", vision_config=vision_config)
    return {
        **builder_entries(builder),
        "weights": weights_fingerprint(checkpoint),
        "vision_config": settings_fingerprint(config),
    }


def builder_entries(builder: ExampleBuilder) -> dict[str, str]:
    """Those of `teacher_fingerprint` that tokenizer and image processor decide."""
    entries = {name: value for name, value in builder.fingerprint.items() if name != "template"}
    return {**entries, "tokenizer_probe": json.dumps(builder.tokenizer.probe_ids())}


def _read(
    folder: Path, sources: Iterable[WeightSource], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The wanted tensors, each copied out of the mapped file that holds it."""
    found: dict[str, Tensor] = {}
    for source in sources:
        if not shapes.keys() & source.shapes().keys():
            continue
        for key, tensor in source.tensors():  # views: pages of the others are never touched
            if key in shapes:
                if tuple(tensor.shape) != shapes[key]:
                    raise InputError(
                        f"{folder}: {key} has shape {tuple(tensor.shape)}, config.json says {shapes[key]}; take both "
                        "from the same checkpoint"
                    )
                check_finite(tensor, key, source.file)
                found[key] = tensor.to(dtype, copy=True).contiguous()
    if missing := sorted(shapes.keys() - found.keys()):
        raise InputError(f"{folder}: no {', '.join(missing)} in its weights; give a whole checkpoint")
    return found
