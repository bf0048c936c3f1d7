"""Turns a record of the store into a training example, which is tokenised again and compared with the record."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import Record, StoreReader
from alignkd.student_train.data.samples.lengths import same_vision_tokens, sequence_lengths
from alignkd.student_train.data.samples.sources import sources_of
from alignkd.vlm.data.images import read_image_bytes
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Example, Preparation
from alignkd.vlm.inputs.generated_labels import generated_positions
from alignkd.vlm.inputs.labels import IGNORE_LABEL


class CachedDataset:
    """The samples of a store as the student reads them, with the teacher's targets.

    Args:
        reader: the store.
        preparation: the STUDENT's tokenizer, template and image processor.
        images: folder to which the records' image paths are relative; None if the store holds the image files, or for
            the folder from which the dump read them.
        images_of: that folder by name of a source of the store, in place of `images`.
        marks_generated: find the positions of answers that a model wrote (`Example.generated`).
    """

    def __init__(
        self,
        reader: StoreReader,
        preparation: Preparation,
        images: Path | None,
        images_of: Mapping[str, Path | None] | None = None,
        *,
        marks_generated: bool = False,
    ) -> None:
        self.reader, self.preparation = reader, preparation
        self._marks_generated = marks_generated
        names, self._source_of = sources_of(reader)
        self._images = [(images_of or {}).get(name, images) for name in names]
        # if False, `checks` allows only terms that need no vision positions of the store
        self._same_positions = same_vision_tokens(reader, preparation)

    def __len__(self) -> int:
        return len(self.reader)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Embedded tokens of each sample, int64; see `sequence_lengths`."""
        return sequence_lengths(self.reader, self.preparation.vision_tokens)

    def __getitem__(self, position: int) -> tuple[Example, Record]:
        """Example and record of this number in the store.

        Raises:
            SampleError: the image is missing or changed, or the student tokenises the conversation differently.
        """
        record = self.reader[position]
        images = self._images[self._source_of[position]]
        return self.example(record, lambda: self._image_bytes(record, images)), record

    def example(self, record: Record, image_files: Callable[[], Sequence[bytes]]) -> Example:
        """The example of a record.

        Args:
            image_files: reads the content of its image files; may raise SampleError.

        Raises:
            SampleError: as `__getitem__`; or it is from `image_files`.
        """
        name = f"sample {record.id!r} (index {record.index})"
        turns = turns_of(record.conversations)
        try:
            files = image_files()
            example = self.preparation.build(turns, files)
            if self._marks_generated:
                example = replace(example, generated=generated_positions(self.preparation, turns, files, example))
        except SampleError as error:
            raise SampleError(f"{name}: {error}") from error
        self._check_tokens(name, example, record)
        return example

    def _check_tokens(self, name: str, example: Example, record: Record) -> None:
        """The student's tokens must be the teacher's, so that targets belong to the positions they are compared at."""
        if self._same_positions or self.preparation.vision_tokens is not None:
            for field in ("input_ids", "labels"):
                _check_equal(name, field, found=getattr(example, field), stored=getattr(record, field))
        else:  # the ids hold one for every vision token, and may have others between those of one image
            found, stored = (labels[labels != IGNORE_LABEL] for labels in (example.labels, record.labels))
            _check_equal(name, "supervised labels", found=found, stored=stored)
        if self._same_positions:
            found, stored = (np.array(x.tokens_of_image, np.int32) for x in (example.positions, record))
            _check_equal(name, "tokens_of_image", found=found, stored=stored)
            for field in ("vision_positions", "tqv_query_positions", "supervised_positions"):
                _check_equal(name, field, found=getattr(example.positions, field), stored=getattr(record, field))

    def _image_bytes(self, record: Record, images: Path | None) -> list[bytes]:
        """The image files, from the folder or the record; their hashes must be those that the teacher saw."""
        files = []
        for number, (image, sha256) in enumerate(zip(record.images, record.image_sha256, strict=True)):
            if record.image_bytes:
                data, where = record.image_bytes[number], f"store {self.reader.path}, image {image}"
            else:
                folder = images or dumped_images(self.reader, record.index)
                assert folder is not None  # checks.check_images
                data, where = read_image_bytes(folder, image), str(folder / image)
            if (found := hashlib.sha256(data).hexdigest()) != sha256:
                raise SampleError(
                    f"{where}: sha256 is {found}, the teacher saw {sha256}; restore the file or dump the targets again"
                )
            files.append(data)
        return files


def dumped_images(reader: StoreReader, index: int) -> Path | None:
    """The folder from which the dump read the images of a sample, if the store names one.

    What lies there now may be anything, so files are compared with the record's hashes.
    """
    read_from = reader.manifest.read_from
    return None if read_from is None else read_from.image_folder(index)


def _check_equal(sample: str, field: str, *, found: NDArray[np.int32], stored: NDArray[np.int32]) -> None:
    if np.array_equal(found, stored):
        return
    if len(found) != len(stored):
        difference = f"{len(found)} values in the student, {len(stored)} in the store"
    else:
        where = int(np.flatnonzero(found != stored)[0])
        difference = f"{found[where]} at position {where} in the student, {stored[where]} in the store"
    raise SampleError(
        f"{sample}: {field} differs: {difference}; dump the targets again with the student's tokenizer and template"
    )
