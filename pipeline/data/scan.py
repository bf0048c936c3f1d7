"""What becomes of each sample of a data set, told as the dump tells it, but without a model and in any process."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vlm.conversations import ConversationFile, MissingImageError, Sample, open_image, read_image_bytes
from vlm.errors import ImageError, SampleError
from vlm.examples import ExampleBuilder
from vlm.images import decode_image
from vlm.templates import LabelMaskError

TEXT_ONLY, NO_FOLDER, MALFORMED_ENTRY = "(text only)", "(no folder)", "(malformed entry)"
NO_IMAGE_KEY = 0
# Pixels. After decoding only the size of the canvas can still make an image unusable, and never that of one which is
# shorter; so the others are spared the resizing.
LONG_SIDE = 4096


class TextState(IntEnum):
    """What a sample's text is good for."""

    USABLE, MALFORMED, BAD_CONVERSATION, LABEL_MASK = range(4)


class ImageState(IntEnum):
    """What a sample's image is good for; `NONE` without one, or where nobody looked."""

    NONE, USABLE, MISSING, OUTSIDE, BROKEN = range(5)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is looked at, and how.

    Attributes:
        files: the data set; samples are numbered through all files.
        builder: tokenizer and template; its `max_tokens` is None, so that every length is counted.
        images: folder of the images, or None to leave them alone.
        decode: whether images are decoded, or only opened.
    """

    files: tuple[ConversationFile, ...]
    builder: ExampleBuilder
    images: Path | None
    decode: bool

    @cached_property
    def ends(self) -> list[int]:
        """Number behind the last sample of each file."""
        return list(accumulate(map(len, self.files)))

    def __len__(self) -> int:
        return self.ends[-1] if self.files else 0

    def find(self, number: int) -> tuple[ConversationFile, Sample]:
        """The sample of that number, and its file."""
        file = bisect_right(self.ends, number)
        return self.files[file], self.files[file][number - (self.ends[file - 1] if file else 0)]


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """The texts of consecutive samples.

    Attributes:
        states: uint8 [samples], `TextState`.
        tokens: int32 [samples], embedded tokens, 0 where the text is unusable.
        image_keys: uint64 [samples], the same for the same image path, `NO_IMAGE_KEY` where none is looked for.
        sources: names of the source data sets that occur.
        source_of: int32 [samples], index into `sources`.
    """

    states: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    image_keys: NDArray[np.uint64]
    sources: list[str]
    source_of: NDArray[np.int32]


def scan_texts(scan: Scan, numbers: range) -> TextBatch:
    """The texts of consecutive samples."""
    states, tokens, keys, names = [], [], [], []
    for number in numbers:
        _, sample = scan.find(number)
        state, length, _ = judge_text(scan, sample)
        states.append(state)
        tokens.append(length)
        looked_for = sample.image if sample.problem is None else None
        keys.append(NO_IMAGE_KEY if looked_for is None else image_key(looked_for))
        names.append(source_of(sample))
    sources = list(dict.fromkeys(names))
    return TextBatch(
        states=np.array(states, np.uint8),
        tokens=np.array(tokens, np.int32),
        image_keys=np.array(keys, np.uint64),
        sources=sources,
        source_of=np.array([sources.index(name) for name in names], np.int32),
    )


def scan_images(scan: Scan, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """`ImageState` of the images of some samples, all of which have one: uint8 [samples]."""
    return np.array([judge_image(scan, scan.find(number)[1])[0] for number in numbers], np.uint8)


def judge_text(scan: Scan, sample: Sample) -> tuple[TextState, int, str]:
    """State of a sample's text, its embedded tokens (0 if unusable), and the reason why it is not usable."""
    if sample.problem is not None:
        return TextState.MALFORMED, 0, sample.problem
    try:
        tokens = scan.builder.tokenize(sample.turns, has_image=sample.image is not None)
    except LabelMaskError as error:
        return TextState.LABEL_MASK, 0, str(error)
    except SampleError as error:
        return TextState.BAD_CONVERSATION, 0, str(error)
    return TextState.USABLE, tokens.positions.length, ""


def judge_image(scan: Scan, sample: Sample) -> tuple[ImageState, str]:
    """State of a sample's image, and the reason why it is not usable."""
    if scan.images is None or sample.image is None:
        return ImageState.NONE, ""
    try:
        if not scan.decode:
            open_image(scan.images, sample.image).close()
            return ImageState.USABLE, ""
        image_bytes = read_image_bytes(scan.images, sample.image)
    except MissingImageError as error:
        return ImageState.MISSING, str(error)
    except SampleError as error:
        return ImageState.OUTSIDE, str(error)
    try:
        image = decode_image(image_bytes)
        if max(image.size) > LONG_SIDE:
            scan.builder.image_processor.process(image)
    except ImageError as error:
        return ImageState.BROKEN, f"{sample.image}: {error}"
    return ImageState.USABLE, ""


def source_of(sample: Sample) -> str:
    """The source data set: the first folder of the image's path."""
    if sample.image is None:
        return TEXT_ONLY if sample.problem is None else MALFORMED_ENTRY
    parts = PurePosixPath(sample.image).parts
    return parts[0] if len(parts) > 1 else NO_FOLDER


def image_key(image: str) -> int:
    """64 bits that stand for an image path; never `NO_IMAGE_KEY`."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest()) or 1
