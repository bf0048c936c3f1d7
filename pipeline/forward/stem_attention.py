"""The attention of a store's teacher, computed from its stem for one record at a time.

Training computes it in the same way: the images go through the vision tower that teacher and student share, and the
stem does the rest (`alignkd.student_train.data.stem_targets`). Only the tower of the checkpoint is in memory.

Shapes: H heads of the teacher, Q text queries, P vision tokens of all images.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alignkd.pipeline.forward.inputs import opened, preparation_of_store
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.storage.schema.targets.attention import NAMES
from alignkd.student_train.data.attention_source import ChosenAttention
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.data.stem_targets import StemLookup, StemTargets
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.stem import StemDesign
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.settings import ProcessorKind
from alignkd.vlm.stem.checks import check_stem_of_teacher
from alignkd.vlm.stem.designs import design_or_reason
from alignkd.vlm.stem.file import STEM_FILE, StemInfo, open_stem, read_stem_info

WANTED = frozenset({"attention"})


class StemAttention:
    """The stem of a store with the vision tower of a checkpoint, on the CPU.

    Args:
        reader: a store that carries its teacher's stem.
        checkpoint: the teacher, or a student with the same tower.

    Raises:
        InputError: the stem cannot be used, or the checkpoint has another tower or reads samples otherwise.
        StoreError: the store has no stem, or a damaged one.
    """

    def __init__(self, reader: StoreReader, checkpoint: Checkpoint) -> None:
        info = read_stem_info(reader.attachment(STEM_FILE))
        check_stem_of_teacher(info, reader.manifest.fingerprint, str(reader.path))
        self._samples = CachedDataset(reader, preparation_of_store(reader, checkpoint), None)
        dtype = TORCH_DTYPES[info.dtype]
        self._tower = _design_of_tower(info, checkpoint).load_tower(checkpoint, dtype)
        stem = open_stem(info.path, lm_head=False)
        self._depth, self._table = info.depth, stem.table
        self._targets = StemTargets(stem, WANTED, chunk_bytes=chunk_bytes_on)

    @torch.no_grad()
    def __call__(self, record: Record, files: Sequence[bytes], layer: int) -> NDArray[np.float32]:
        """The attention of the text queries of a record to its vision tokens, float32 [H, Q, P].

        Args:
            record: a record of the store with at least one image.
            files: content of each image file, which must be those that the teacher saw.
            layer: number of one of the teacher's decoder layers.

        Raises:
            InputError: the stem ends before this layer.
            SampleError: an image is unusable, or the checkpoint tokenises the conversation differently.
        """
        if layer >= self._depth:
            raise InputError(f"the store's stem gives layers 0..{self._depth - 1}, not layer {layer}")
        example = self._samples.example(record, lambda: files)
        wanted = ChosenAttention(names=(NAMES["tqv"],), layers=(layer,))
        lookup = StemLookup(wanted=WANTED, table=self._table)
        batch = collate([(example, record)], targets=WANTED, attention_pairs=wanted, stem=lookup)
        attention = self._targets.fill(batch, self._tower(batch.sequences.images)).attention
        assert attention is not None and attention.coded_BRHC is not None
        values_RHP: NDArray[np.float32] = attention.coded_BRHC.parts[""][0].numpy()
        return values_RHP.swapaxes(0, 1)


def stem_attention(
    reader: StoreReader,
    place: Path | str,
    *,
    vision_config: Path | None = None,
    processor: ProcessorKind = "auto",
) -> StemAttention:
    """The stem of a store with the tower of a checkpoint.

    Args:
        place: folder or hub id of the checkpoint.
        vision_config, processor: as for `opened`.

    Raises:
        InputError, StoreError: as `StemAttention`; or there is no such checkpoint.
    """
    return StemAttention(reader, opened(place, vision_config=vision_config, processor=processor))


def _design_of_tower(info: StemInfo, checkpoint: Checkpoint) -> StemDesign:
    """The design of the checkpoint's tower, which must be that of the stem's teacher.

    Raises:
        InputError: it is another one.
    """
    found = design_or_reason(checkpoint.config)
    if isinstance(found, str) or found.name != info.design.name:
        name = found if isinstance(found, str) else f"its architecture is {found.name}"
        raise InputError(
            f"{checkpoint.name}: has not the vision tower of the stem's teacher, {info.design.name} ({name}); give the "
            "teacher's checkpoint, or that of a student with the same tower"
        )
    expected, own = info.tower.get(info.dtype, "not recorded"), found.tower_hashes(checkpoint, [info.dtype])[info.dtype]
    if expected != own:
        raise InputError(
            f"{checkpoint.name}: its vision tower has hash {own[:12]} in {info.dtype}, that of the stem's teacher "
            f"{expected[:12]}; give the teacher's checkpoint, or that of a student with the same tower"
        )
    return found
