"""A student beside the teacher: its attention and its probabilities on the same record.

The model needs torch, which this module imports late, by name (`alignkd.pipeline.forward.student`).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from alignkd.pipeline.browse.records.distance import Known, known
from alignkd.pipeline.browse.records.page import LayerView
from alignkd.pipeline.browse.records.predictions import Prediction, labels_of, prediction
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention
from alignkd.pipeline.shards.view.pieces import Pieces
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.vlm.errors import InputError

_MODULE = "alignkd.pipeline.forward.student"
# passes that are kept, for a reader who looks at one token after the other
KEPT = 4


@dataclass(frozen=True, kw_only=True)
class StudentPage:
    """The attention and predictions of a student for one record.

    Attributes:
        name: the checkpoint.
        layers: its layers with attention.
        predictions: of each label, in the order of the supervised tokens of the record's page.
        no_attention: why its attention cannot be shown; None if it can.
    """

    name: str
    layers: tuple[LayerView, ...]
    predictions: tuple[Prediction, ...]
    no_attention: str | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class StudentViews:
    """A student of a store; it is loaded when it is asked for the first time. One record is computed at a time.

    Args:
        reader: the store.
        pieces: token id -> piece.
        checkpoint: folder or hub id.
        vision_config: folder with its vision tower's `config.json`, if the checkpoint does not have it.
    """

    def __init__(
        self, reader: StoreReader, pieces: Pieces, checkpoint: Path | str, vision_config: Path | None = None
    ) -> None:
        self.name = str(checkpoint)
        self._reader, self._pieces, self._vision_config = reader, pieces, vision_config
        self._lock = Lock()
        self._loaded: Any = None
        self._problem: str | None = None
        self._kept: dict[tuple[int, int], Any] = {}

    def page(self, record: Record, files: Sequence[bytes]) -> StudentPage:
        """The attention and predictions of the student for a record.

        Args:
            files: content of each image file, which must be those that the teacher saw.

        Raises:
            InputError: the checkpoint cannot be used with this store; or as SampleError, with this record.
        """
        found = self._pass(record, files, None)
        tokens = np.arange(found.logprobs_NV.shape[1])
        places = zip(record.supervised_positions.tolist(), labels_of(record).tolist(), found.logprobs_NV, strict=True)
        model = self._loaded
        return StudentPage(
            name=self.name,
            layers=tuple(LayerView(layer=at, heads=model.num_heads, source="student") for at in model.layers),
            predictions=tuple(
                prediction(position, label, tokens, np.exp(row.astype(np.float64)), 0.0, self._pieces)
                for position, label, row in places
            ),
            no_attention=_why_none(record) if found.attention_HQP is None else None,
        )

    def known_tokens(self, record: Record, files: Sequence[bytes]) -> list[Known]:
        """Every token with its probability at each supervised position; arguments and errors as `page`."""
        logprobs_NV = self._pass(record, files, None).logprobs_NV
        tokens = np.arange(logprobs_NV.shape[1])
        return [known(tokens, np.exp(row.astype(np.float64))) for row in logprobs_NV]

    def layer(self, record: Record, files: Sequence[bytes], layer: int | None) -> LayerAttention:
        """The attention of a layer of the student.

        Args:
            files: as for `page`.
            layer: number of a decoder layer that has attention; None for the first.

        Raises:
            InputError: as `page`; or no such layer, or its attention cannot be shown.
        """
        found = self._pass(record, files, layer)
        if found.attention_HQP is None:
            raise InputError(_why_none(record))
        number = self._loaded.layers[0] if layer is None else layer
        return LayerAttention(layer=number, source="student", values_HQP=found.attention_HQP)

    def _pass(self, record: Record, files: Sequence[bytes], layer: int | None) -> Any:
        """`StudentPass` of a record, computed once."""
        with self._lock:
            student = self._student()
            number = student.layers[0] if layer is None else layer
            place = (record.index, number)
            if place not in self._kept:
                self._kept[place] = student(record, files, number)
                if len(self._kept) > KEPT:
                    del self._kept[next(iter(self._kept))]
            return self._kept[place]

    def _student(self) -> Any:
        """`Student`, loaded once; what it lacks is remembered."""
        if self._problem is not None:
            raise InputError(self._problem)
        if self._loaded is None:
            load = import_module(_MODULE).open_student
            try:
                self._loaded = load(self._reader, self.name, vision_config=self._vision_config)
            except InputError as error:
                self._problem = str(error)
                raise
        return self._loaded


def _why_none(record: Record) -> str:
    if not record.has_image:
        return "the record has no image"
    return "the student's vision tokens have other positions than the teacher's"
