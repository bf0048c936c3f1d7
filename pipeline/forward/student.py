"""What a student computes for one record: its attention to the images and its distribution at supervised positions.

The sample is prepared, and the model run, as training does it.

Shapes: H heads of the student, Q text queries, P vision tokens of all images, N supervised positions, V tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alignkd.pipeline.forward.inputs import opened, preparation_of_store
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.student_train.data.collate import collate_inputs
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.run.checks.fit import compared_tokens
from alignkd.vlm.attention.attention_rows import chunk_bytes_on
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.hardware.devices import TORCH_DTYPES, DtypeName
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.settings import ProcessorKind


@dataclass(frozen=True, kw_only=True, eq=False)
class StudentPass:
    """One forward pass over one record.

    Attributes:
        attention_HQP: of one decoder layer, float32 [H, Q, P]; None without an image, and where the student's vision
            tokens have other positions than the teacher's.
        logprobs_NV: natural log, float32 [N, V], over the columns that training compares.
    """

    attention_HQP: NDArray[np.float32] | None
    logprobs_NV: NDArray[np.float32]


class Student:
    """A student on the CPU.

    Args:
        reader: the store.
        checkpoint: the student.
        dtype: dtype of its weights and arithmetic.

    Raises:
        InputError: unusable weights, or it reads samples otherwise than the store's teacher.
    """

    def __init__(self, reader: StoreReader, checkpoint: Checkpoint, *, dtype: DtypeName = "float32") -> None:
        preparation = preparation_of_store(reader, checkpoint)
        self._samples = CachedDataset(reader, preparation, None)
        self._num_tokens = compared_tokens(reader, checkpoint.config)
        self._model = checkpoint.load_model(dtype=TORCH_DTYPES[dtype])
        self.layers: tuple[int, ...] = checkpoint.config.attention_layers
        self.num_heads: int = checkpoint.config.num_heads

    @torch.no_grad()
    def __call__(self, record: Record, files: Sequence[bytes], layer: int) -> StudentPass:
        """Run one record.

        Args:
            files: content of each image file, which must be those that the teacher saw.
            layer: number of a decoder layer that has attention, one of `layers`.

        Raises:
            InputError: no such layer.
            SampleError: an image is unusable, or the student tokenises the conversation differently.
        """
        if layer not in self.layers:
            raise InputError(f"the student has attention in layers {', '.join(map(str, self.layers))}, not {layer}")
        example, model = self._samples.example(record, lambda: files), self._model
        batch = collate_inputs([example])
        sequences = batch.sequences
        vision = None
        if sequences.images:
            vision = model.encode_images(sequences.images, sequences.image_samples_I.tolist())
        with model.watched_layers([layer]) as layers:
            hidden_BLD = model.hidden_states(sequences, vision)
        attention = None
        if example.positions.num_images and _has_positions_of(example, record):
            rows_BR, cols_BC = (
                torch.from_numpy(places.astype(np.int64))[None]
                for places in (example.positions.tqv_query_positions, example.positions.vision_positions)
            )
            attention = layers[layer].attention(rows_BR, cols_BC, chunk_bytes=chunk_bytes_on("cpu"))[0].numpy()
        logits_NV = model.head(hidden_BLD.flatten(0, 1)[batch.supervised_N])[:, : self._num_tokens]
        return StudentPass(attention_HQP=attention, logprobs_NV=logits_NV.float().log_softmax(-1).numpy())


def open_student(
    reader: StoreReader,
    place: Path | str,
    *,
    vision_config: Path | None = None,
    processor: ProcessorKind = "auto",
    dtype: DtypeName = "float32",
) -> Student:
    """The student of a folder or hub id.

    Args:
        vision_config, processor: as for `opened`.
        dtype: dtype of weights and arithmetic.

    Raises:
        InputError: as `Student`; or there is no such checkpoint.
    """
    return Student(reader, opened(place, vision_config=vision_config, processor=processor), dtype=dtype)


def _has_positions_of(example: Example, record: Record) -> bool:
    """Whether vision tokens and text queries are where the teacher has them."""
    own = example.positions
    return np.array_equal(own.vision_positions, record.vision_positions) and np.array_equal(
        own.tqv_query_positions, record.tqv_query_positions
    )
