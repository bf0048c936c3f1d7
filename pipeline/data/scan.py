"""Judges each sample of a data set exactly as a dump does, but without a model and in any process."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.data.notes import Notes
from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.images import MissingImageError, open_image, read_image_bytes
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import ImageError, LabelMaskError, SampleError
from alignkd.vlm.inputs.examples import Preparation, Tokens
from alignkd.vlm.inputs.image_file import decode_with_orientation, image_size

TEXT_ONLY, NO_FOLDER, MALFORMED_ENTRY = "(text only)", "(no folder)", "(malformed entry)"
# size of an image where the number of its tokens does not depend on it
_ANY_SIZE = (0, 0)


class TextState(IntEnum):
    """The state of a sample's text. `UNSIZED`: its length needs the size of an image, which cannot be read."""

    USABLE, MALFORMED, BAD_CONVERSATION, LABEL_MASK, UNSIZED = range(5)


class ImageState(IntEnum):
    """The state of an image, or of the worst image of a sample; `NONE` without an image, or if images are not read."""

    NONE, USABLE, MISSING, OUTSIDE, BROKEN = range(5)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The data to scan, and how.

    Attributes:
        files: the data set; samples are numbered consecutively through all files.
        builder: tokenizer and template; its `max_tokens` is None, so that every length is counted.
        images: folder of the images; None reads no image.
        decode: decode images instead of only opening them.
    """

    files: tuple[ConversationFile, ...]
    builder: Preparation
    images: Path | None
    decode: bool

    @cached_property
    def ends(self) -> list[int]:
        """For each file, one more than the number of its last sample."""
        return list(accumulate(map(len, self.files)))

    def __len__(self) -> int:
        return self.ends[-1] if self.files else 0

    def find(self, number: int) -> tuple[ConversationFile, Sample]:
        """The file of sample `number`, and the sample."""
        file, index = self._place(number)
        return file, file[index]

    def entry(self, number: int) -> tuple[Any, Sample]:
        """The JSON value of sample `number`, and the sample."""
        file, index = self._place(number)
        entry = file.entry(index)
        return entry, sample_of_entry(index, entry)

    def _place(self, number: int) -> tuple[ConversationFile, int]:
        file = bisect_right(self.ends, number)
        return self.files[file], number - (self.ends[file - 1] if file else 0)


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """The texts of consecutive samples.

    Attributes:
        states: uint8 [samples], `TextState`.
        tokens: int32 [samples], embedded tokens; 0 if the text is unusable.
        images_of: int32 [samples], number of images; 0 for malformed entries.
        image_keys: uint64 [sum of `images_of`], equal for equal image paths.
        sources: names of the source data sets.
        source_of: int32 [samples], index into `sources`.
        notes: keys, marks and reasons.
    """

    states: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    images_of: NDArray[np.int32]
    image_keys: NDArray[np.uint64]
    sources: list[str]
    source_of: NDArray[np.int32]
    notes: Notes


def scan_texts(scan: Scan, numbers: range) -> TextBatch:
    """Judge the texts of consecutive samples."""
    states, tokens, images_of, names = [], [], [], []
    keys: list[int] = []
    notes = Notes()
    for number in numbers:
        entry, sample = scan.entry(number)
        state, length, reason = judge_text(scan, sample)
        notes.note(entry, sample, reason)
        states.append(state)
        tokens.append(length)
        looked_for = sample.images if sample.problem is None else ()
        images_of.append(len(looked_for))
        keys += map(image_key, looked_for)
        names.append(source_of(sample))
    sources = list(dict.fromkeys(names))
    return TextBatch(
        states=np.array(states, np.uint8),
        tokens=np.array(tokens, np.int32),
        images_of=np.array(images_of, np.int32),
        image_keys=np.array(keys, np.uint64),
        sources=sources,
        source_of=np.array([sources.index(name) for name in names], np.int32),
        notes=notes,
    )


def scan_images(scan: Scan, places: Sequence[tuple[int, int]]) -> NDArray[np.uint8]:
    """Judge images, each given as (number of the sample, number of the image in the sample): uint8 [places, 2].

    The columns are `ImageState` and the EXIF orientation, which is 0 if the image was not decoded.
    """
    found = (_judge(scan, (scan.find(number)[1].images[own],)) for number, own in places)
    return np.array([(state, orientation) for state, _, orientation in found], np.uint8).reshape(-1, 2)


def judge_text(scan: Scan, sample: Sample) -> tuple[TextState, int, str]:
    """State of a sample's text, its embedded tokens (0 if unusable), and the reason if it is unusable."""
    if sample.problem is not None:
        return TextState.MALFORMED, 0, sample.problem
    try:
        tokens = tokens_of(scan, sample)
    except (ImageError, MissingImageError) as error:
        return TextState.UNSIZED, 0, str(error)
    except LabelMaskError as error:
        return TextState.LABEL_MASK, 0, str(error)
    except SampleError as error:
        return TextState.BAD_CONVERSATION, 0, str(error)
    return TextState.USABLE, tokens.positions.length, ""


def tokens_of(scan: Scan, sample: Sample) -> Tokens:
    """The tokens of a sample; image files are read where the number of vision tokens depends on their size.

    Raises:
        ImageError: an image has no size, or the scan has no image folder. MissingImageError: no such file.
        SampleError: unusable conversation.
    """
    sizes = [_ANY_SIZE] * len(sample.images)
    if scan.builder.vision_tokens is None and sample.images:
        if scan.images is None:
            raise ImageError("the number of vision tokens depends on the image; give the folder of the images")
        sizes = [image_size(read_image_bytes(scan.images, image)) for image in sample.images]
    return scan.builder.tokenize(sample.turns, sizes)


def judge_image(scan: Scan, sample: Sample) -> tuple[ImageState, str]:
    """State of a sample's images, and the reason if one is unusable."""
    return _judge(scan, sample.images)[:2]


def _judge(scan: Scan, images: Sequence[str]) -> tuple[ImageState, str, int]:
    """State, reason and orientation (of the last image). As in a dump, all files are read before any is decoded."""
    orientation = 0
    if scan.images is None or not images:
        return ImageState.NONE, "", orientation
    try:
        if not scan.decode:
            for image in images:
                open_image(scan.images, image).close()
            return ImageState.USABLE, "", orientation
        files = [read_image_bytes(scan.images, image) for image in images]
    except MissingImageError as error:
        return ImageState.MISSING, str(error), orientation
    except SampleError as error:
        return ImageState.OUTSIDE, str(error), orientation
    for number, content in enumerate(files):
        try:
            image_rgb, orientation = decode_with_orientation(content)
            scan.builder.check_image(image_rgb)
        except ImageError as error:
            which = f"image {number + 1} of {len(images)}: " if len(images) > 1 else ""
            return ImageState.BROKEN, f"{' and '.join(images)}: {which}{error}", orientation
    return ImageState.USABLE, "", orientation


def source_of(sample: Sample) -> str:
    """The source data set of a sample: the first folder in the path of its first image."""
    if not sample.images:
        return TEXT_ONLY if sample.problem is None else MALFORMED_ENTRY
    parts = PurePosixPath(sample.images[0]).parts
    return parts[0] if len(parts) > 1 else NO_FOLDER


def image_key(image: str) -> int:
    """A 64-bit hash of an image path; never 0."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest()) or 1
