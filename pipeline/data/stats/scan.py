"""Judges each sample of a data set exactly as a dump does, but without a model and in any process."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.data.stats.notes import Notes
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.images import MissingImageError, open_image, read_image_bytes
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import ImageError, LabelMaskError, SampleError
from alignkd.vlm.inputs.examples import Preparation, Tokens
from alignkd.vlm.inputs.image_file import decode_with_orientation, image_size

TEXT_ONLY, NO_FOLDER, MALFORMED_ENTRY = "(text only)", "(no folder)", "(malformed entry)"
# size of an image where the number of its tokens does not depend on it
_ANY_SIZE = (0, 0)


class TextState(IntEnum):
    """The state of a sample's text.

    `UNSIZED`: its length needs the size of an image, which cannot be read. `NO_FOLDER`: there is no image folder.
    `UNANSWERED`: only answers are missing.
    """

    USABLE, MALFORMED, BAD_CONVERSATION, LABEL_MASK, UNSIZED, NO_FOLDER, UNANSWERED = range(7)


class NoImageFolderError(ImageError):
    """An image is needed that is not in the data file, and there is no image folder."""


class ImageState(IntEnum):
    """The state of an image, or of the worst image of a sample; `NONE` without an image, or if images are not read."""

    NONE, USABLE, MISSING, OUTSIDE, BROKEN = range(5)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The data to scan, and how.

    Attributes:
        sources: the data sets; samples are numbered consecutively through all of them.
        builder: tokenizer and template; its `max_tokens` is None, so that every length is counted.
        decode: decode images instead of only opening them.
    """

    sources: tuple[EntrySource, ...]
    builder: Preparation
    decode: bool

    @cached_property
    def ends(self) -> list[int]:
        """For each data set, one more than the number of its last sample."""
        return list(accumulate(map(len, self.sources)))

    @cached_property
    def reads_images(self) -> bool:
        """Whether there are images to check: in a folder, or in the data files."""
        return any(source.data.images is not None or source.holds_images for source in self.sources)

    def __len__(self) -> int:
        return self.ends[-1] if self.sources else 0

    def find(self, number: int) -> tuple[EntrySource, Sample]:
        """The data set of sample `number`, and the sample."""
        source, index = self._place(number)
        return source, source[index]

    def is_sequential(self, number: int) -> bool:
        """Whether the data set of sample `number` is read fast only in its order."""
        return self._place(number)[0].is_sequential

    def ranges(self, size: int) -> Iterator[range]:
        """The numbers of all samples in ranges of `size`.

        Where samples are read fast only in their order, a range is one block or several whole ones, with `size` samples
        or more: two processes then never decode the same block.
        """
        start = 0
        for end, source in zip(self.ends, self.sources, strict=True):
            for stop in _stops(start, end, size, source.block_sizes if source.is_sequential else None):
                yield range(start, stop)
                start = stop

    def entry(self, number: int) -> tuple[Any, Sample]:
        """The entry of sample `number`, and the sample."""
        source, index = self._place(number)
        sample, entry = source.sample_and_entry(index)
        return entry, sample

    def _place(self, number: int) -> tuple[EntrySource, int]:
        source = bisect_right(self.ends, number)
        return self.sources[source], number - (self.ends[source - 1] if source else 0)


def _stops(start: int, end: int, size: int, blocks: Sequence[int] | None) -> Iterator[int]:
    """Where each range of a data set of samples `start` to `end` stops."""
    if blocks is None:
        yield from (min(stop, end) for stop in range(start + size, end + size, size))
        return
    for reached in accumulate(blocks, initial=start):
        if reached - start >= size or (reached == end > start):
            yield reached
            start = reached


@dataclass(frozen=True, kw_only=True)
class TextBatch:
    """The texts of consecutive samples.

    Attributes:
        states: uint8 [samples], `TextState`.
        tokens: int32 [samples], embedded tokens; 0 if the text is unusable.
        images_of: int32 [samples], number of images; 0 for malformed entries.
        image_keys: uint64 [sum of `images_of`], equal for equal image paths, and for equal images in data files.
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
        looked_for = len(sample.images) if sample.problem is None or sample.unanswered else 0
        images_of.append(looked_for)
        keys += (_key_of(sample, own) for own in range(looked_for))
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
    found = (_judge(scan, sample, [own]) for sample, own in _samples_of(scan, places))
    return np.array([(state, orientation) for state, _, orientation in found], np.uint8).reshape(-1, 2)


def _samples_of(scan: Scan, places: Sequence[tuple[int, int]]) -> Iterator[tuple[Sample, int]]:
    """The sample of each place, read once for places that follow each other."""
    for number, group in groupby(places, key=lambda place: place[0]):
        sample = scan.find(number)[1]
        yield from ((sample, own) for _, own in group)


def judge_text(scan: Scan, sample: Sample) -> tuple[TextState, int, str]:
    """State of a sample's text, its embedded tokens (0 if unusable), and the reason if it is unusable."""
    if sample.problem is not None:
        return TextState.UNANSWERED if sample.unanswered else TextState.MALFORMED, 0, sample.problem
    try:
        tokens = tokens_of(scan, sample)
    except NoImageFolderError as error:
        return TextState.NO_FOLDER, 0, str(error)
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
        ImageError: an image has no size, or there is no image folder. MissingImageError: no such file.
        SampleError: unusable conversation.
    """
    return tokenized(scan.builder, sample)


def tokenized(builder: Preparation, sample: Sample) -> Tokens:
    """See `tokens_of`."""
    sizes = [_ANY_SIZE] * len(sample.images)
    if builder.vision_tokens is None:
        sizes = [image_size(image_bytes(sample, own)) for own in range(len(sample.images))]
    return builder.tokenize(sample.turns, sizes)


def judge_image(scan: Scan, sample: Sample) -> tuple[ImageState, str]:
    """State of a sample's images, and the reason if one is unusable."""
    return _judge(scan, sample, range(len(sample.images)))[:2]


def _judge(scan: Scan, sample: Sample, numbers: Sequence[int]) -> tuple[ImageState, str, int]:
    """State, reason and orientation (of the last image). As in a dump, all files are read before any is decoded."""
    orientation = 0
    images = [sample.images[own] for own in numbers if sample.folder is not None or held(sample, own) is not None]
    if not images:
        return ImageState.NONE, "", orientation
    try:
        if not scan.decode:
            for own in numbers:
                _check_opens(sample, own)
            return ImageState.USABLE, "", orientation
        files = [image_bytes(sample, own) for own in numbers]
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


def held(sample: Sample, own: int) -> bytes | None:
    """The image with number `own` of a sample, if the data file holds it."""
    return sample.contents[own] if sample.contents else None


def image_bytes(sample: Sample, own: int) -> bytes:
    """The file of the image with number `own` of a sample.

    Raises:
        NoImageFolderError: it is not in the data file. SampleError: as `read_image_bytes`.
    """
    if (content := held(sample, own)) is not None:
        return content
    if sample.folder is None:
        raise NoImageFolderError("the number of vision tokens depends on the image; give the folder of the images")
    return read_image_bytes(sample.folder, sample.images[own])


def _check_opens(sample: Sample, own: int) -> None:
    if held(sample, own) is None and sample.folder is not None:
        open_image(sample.folder, sample.images[own]).close()


def source_of(sample: Sample) -> str:
    """The source data set of a sample: the first folder in the path of its first image."""
    if not sample.images:
        return TEXT_ONLY if sample.problem is None or sample.unanswered else MALFORMED_ENTRY
    parts = PurePosixPath(sample.images[0]).parts
    return parts[0] if len(parts) > 1 else NO_FOLDER


def image_key(image: str) -> int:
    """A 64-bit hash of an image path; never 0."""
    return _hash(image.encode(), b"path")


def _key_of(sample: Sample, own: int) -> int:
    """A 64-bit hash of an image's path, or of the image itself if the data file holds it; never 0."""
    content = held(sample, own)
    return image_key(sample.images[own]) if content is None else _hash(content, b"content")


def _hash(data: bytes, kind: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8, person=kind).digest()) or 1
