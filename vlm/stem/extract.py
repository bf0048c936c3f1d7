"""From a teacher's checkpoint to its stem: only the needed tensors are read into memory, whatever the teacher's size.

Every byte of the weight files is hashed once, because the fingerprint in a store's manifest covers all of them; this
takes time, but no memory.
"""

import json
from pathlib import Path

import torch

from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.inputs.examples import Preparation
from alignkd.vlm.stem.designs import design_of
from alignkd.vlm.stem.file import StemInfo, StemParts, stem_bytes, write_stem


def extract_stem(
    checkpoint: Checkpoint, out: Path, *, dtype: torch.dtype, lm_head: bool = False, depth: int | None = None
) -> StemInfo:
    """Write the stem of a checkpoint to the file `out`.

    Args:
        dtype: dtype of the stem's tensors; with the dtype of the dump, targets equal those of the live teacher.
        lm_head: include `lm_head` and the final norm, for stores of hidden states that hold none.
        depth: number of decoder layers whose attention the stem gives; None: up to the first that has attention.

    Raises:
        InputError: unusable checkpoint, a tensor that is missing, misshapen or not finite, `out` cannot be written, or
            a checkpoint without stem, or without one of this depth.
    """
    return write_stem(out, _parts(checkpoint, dtype, lm_head, depth))


def extracted_bytes(checkpoint: Checkpoint, *, dtype: torch.dtype, depth: int | None = None) -> bytes:
    """The file that `extract_stem` writes, without `lm_head`: the same bytes at every call, for a store to carry.

    Raises:
        InputError: as `extract_stem`.
    """
    return stem_bytes(_parts(checkpoint, dtype, False, depth))


def teacher_fingerprint(checkpoint: Checkpoint) -> dict[str, str]:
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


def _parts(checkpoint: Checkpoint, dtype: torch.dtype, lm_head: bool, depth: int | None) -> StemParts:
    design = design_of(checkpoint, depth)
    return StemParts(
        weights=design.read(checkpoint, dtype, lm_head=lm_head),
        fingerprint=teacher_fingerprint(checkpoint),
        tower=design.tower_hashes(checkpoint, TORCH_DTYPES),
        design=design,
    )
