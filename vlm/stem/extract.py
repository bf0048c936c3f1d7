"""From a teacher's checkpoint to its stem: only the needed tensors are read into memory, whatever the teacher's size.

Every byte of the weight files is hashed once, because the fingerprint in a store's manifest covers all of them; this
takes time, but no memory.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.mobilevlm.weights.sources import WeightSource, tower_tensors
from alignkd.vlm.families.mobilevlm.weights.tower_hash import tower_hashes
from alignkd.vlm.finite import check_finite
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.file import StemInfo, StemParts, stem_bytes, write_stem
from alignkd.vlm.stem.stem import stem_shapes


def extract_stem(checkpoint: Checkpoint, out: Path, *, dtype: torch.dtype, lm_head: bool = False) -> StemInfo:
    """Write the stem of a checkpoint to the file `out`.

    Args:
        dtype: dtype of the stem's tensors; with the dtype of the dump, targets equal those of the live teacher.
        lm_head: include `lm_head` and the final norm, for stores of hidden states that hold none.

    Raises:
        InputError: unusable checkpoint, a tensor that is missing, misshapen or not finite, `out` cannot be written, or
            a family without stem.
    """
    return write_stem(out, _parts(_with_stem(checkpoint), dtype, lm_head))


def extracted_bytes(checkpoint: Checkpoint, *, dtype: torch.dtype) -> bytes:
    """The file that `extract_stem` writes, without `lm_head`: the same bytes at every call, for a store to carry.

    Raises:
        InputError: as `extract_stem`.
    """
    return stem_bytes(_parts(_with_stem(checkpoint), dtype, False))


def _with_stem(checkpoint: Checkpoint) -> MobileVLMCheckpoint:
    if not isinstance(checkpoint, MobileVLMCheckpoint):
        raise InputError(
            f"{checkpoint.name}: a checkpoint of the family {checkpoint.family} has no stem; store the targets, for "
            "example with store.profile compact"
        )
    return checkpoint


def teacher_fingerprint(checkpoint: MobileVLMCheckpoint) -> dict[str, str]:
    """The entries of a store's fingerprint that depend on the teacher's checkpoint alone.

    They leave out the template, so that one stem serves stages of several templates, and the dtype, which a stem may
    choose.
    """
    return {
        **builder_entries(checkpoint.preparation()),
        "weights": checkpoint.fingerprint,
        **checkpoint.settings_fingerprint,
    }


def builder_entries(builder: Preparation) -> dict[str, str]:
    """The entries of `teacher_fingerprint` that depend on tokenizer and image processor."""
    entries = {name: value for name, value in builder.fingerprint.items() if name != "template"}
    return {**entries, "tokenizer_probe": json.dumps(builder.probe())}


def _parts(checkpoint: MobileVLMCheckpoint, dtype: torch.dtype, lm_head: bool) -> StemParts:
    folder, config, sources = checkpoint.folder, checkpoint.config, checkpoint.sources
    return StemParts(
        weights=_read(folder, sources, stem_shapes(config, lm_head=lm_head), dtype),
        fingerprint=teacher_fingerprint(checkpoint),
        tower=tower_hashes(tower_tensors(folder, sources), config),
        config=config,
    )


def _read(
    folder: Path, sources: Iterable[WeightSource], shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The wanted tensors, each copied out of the mapped file."""
    found: dict[str, Tensor] = {}
    for source in sources:
        if not shapes.keys() & source.shapes().keys():
            continue
        for key, tensor in source.tensors():  # views: the pages of other tensors are never read
            if key in shapes:
                if tuple(tensor.shape) != shapes[key]:
                    raise InputError(
                        f"{folder}: {key} has shape {tuple(tensor.shape)}, config.json says {shapes[key]}; take both "
                        "from the same checkpoint"
                    )
                check_finite(tensor, key, source.file)
                found[key] = tensor.to(dtype, copy=True).contiguous()
    if missing := sorted(shapes.keys() - found.keys()):
        raise InputError(f"{folder}: no {', '.join(missing)} in its weights; give a complete checkpoint")
    return found
