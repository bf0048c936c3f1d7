"""Attention that a store does not hold, because the teacher's stem gives it: what is needed to compute it.

The computation needs torch, which this module imports late, by name (`alignkd.pipeline.forward`).
"""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

from alignkd.pipeline.shards.view.attention.image_files import image_files
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.storage.schema.manifest import Manifest
from alignkd.vlm.errors import InputError

_MODULE = "alignkd.pipeline.forward.stem_attention"
# layers of records that are kept, for a reader who looks at one token after the other
KEPT = 4
WHY = "attention is not stored: the teacher's stem gives it together with the vision tower of a checkpoint"


@dataclass(frozen=True, kw_only=True)
class TowerPlace:
    """The checkpoint that has the vision tower.

    Attributes:
        checkpoint: folder or hub id.
        vision_config, processor: as for `open_checkpoint`.
    """

    checkpoint: Path | str
    vision_config: Path | None = None
    processor: str = "auto"


def tower_place(manifest: Manifest, checkpoint: Path | str | None, vision_config: Path | None = None) -> TowerPlace:
    """The given checkpoint; by default the teacher's folder that the manifest names.

    A manifest may come from a stranger. So a default is taken only if it is a folder of this machine; nothing is
    fetched for it, and its tower must be that of the stem.

    Raises:
        InputError: none is given, and the manifest's is not there.
    """
    if checkpoint is not None:
        return TowerPlace(checkpoint=checkpoint, vision_config=vision_config)
    named = manifest.read_from
    if named is None or named.checkpoint is None:
        raise InputError(f"{WHY}, and the store names none; give the teacher's or a student's by --checkpoint")
    if not os.path.isfile(Path(named.checkpoint) / "config.json"):  # noqa: PTH113 - False also without permission
        raise InputError(
            f"{WHY}; {named.checkpoint}, where the dump found the teacher, is not there; give the teacher's or a "
            "student's by --checkpoint"
        )
    given = vision_config or (None if named.vision_config is None else Path(named.vision_config))
    processor = "pil" if named.processor == "pil" else "auto"
    return TowerPlace(checkpoint=Path(named.checkpoint), vision_config=given, processor=processor)


class StemLayers:
    """The attention that the stem of a store gives; what it needs is opened when the first layer is asked for.

    One record is computed at a time; threads may share it.

    Args:
        reader: the store.
        checkpoint, vision_config: as for `tower_place`.
    """

    def __init__(
        self, reader: StoreReader, checkpoint: Path | str | None = None, vision_config: Path | None = None
    ) -> None:
        self._reader, self._checkpoint, self._vision_config = reader, checkpoint, vision_config
        self._lock = Lock()
        self._kept: dict[tuple[int, int], LayerAttention] = {}
        self._opened: Any = None
        self._problem: str | None = None

    def why_not(self) -> str | None:
        """Why nothing can be computed, as far as it is known without opening a model; None: nothing is known."""
        if self._problem is not None:
            return self._problem
        try:
            tower_place(self._reader.manifest, self._checkpoint, self._vision_config)
        except InputError as error:
            return str(error)
        return None

    def layer(self, record: Record, images: Path | None, layer: int) -> LayerAttention:
        """The attention of a layer of a record with an image.

        Args:
            images: folder of its images, if the store does not hold them.

        Raises:
            InputError: one line that names what is missing: checkpoint, tower, stem, images.
            StoreError: the stem is damaged.
        """
        with self._lock:
            place = (record.index, layer)
            if place not in self._kept:
                values_HQP = self._stem()(record, image_files(record, images), layer)
                self._kept[place] = LayerAttention(layer=layer, source="stem", values_HQP=values_HQP)
                if len(self._kept) > KEPT:
                    del self._kept[next(iter(self._kept))]
            return self._kept[place]

    def _stem(self) -> Any:
        """`StemAttention`, opened once; what it lacks is remembered."""
        if self._problem is not None:
            raise InputError(self._problem)
        if self._opened is None:
            place = tower_place(self._reader.manifest, self._checkpoint, self._vision_config)
            opened = import_module(_MODULE).stem_attention
            try:
                self._opened = opened(
                    self._reader, place.checkpoint, vision_config=place.vision_config, processor=place.processor
                )
            except InputError as error:
                self._problem = str(error)
                raise
        return self._opened
