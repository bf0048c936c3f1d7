"""A table with one row per sample, filled by worker processes: about 21 bytes per sample, no text."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alignkd.pipeline.data.stats.notes import Notes
from alignkd.pipeline.data.stats.process_pool import ProcessPool
from alignkd.pipeline.data.stats.scan import ImageState, Scan, TextBatch, TextState, scan_images, scan_texts
from alignkd.vlm.inputs.examples import is_overlong

TEXTS_PER_TASK = 256
IMAGES_PER_TASK = 32

# What a dump does with a sample, in the order of the dump's checks.
KINDS = (
    "kept",
    "malformed",
    "unanswered",
    "image_missing",
    "image_outside",
    "conversation",
    "label_mask",
    "overlong",
    "image_broken",
)
KEPT, MALFORMED, UNANSWERED, MISSING, OUTSIDE, CONVERSATION, LABEL_MASK, OVERLONG, BROKEN = range(len(KINDS))


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """One row per sample; arrays of [samples].

    Attributes:
        text_states: uint8, `TextState`.
        tokens: int32, embedded tokens; 0 if the text is unusable.
        image_states: uint8, `ImageState` of the worst image.
        images_of: int32, number of images; 0 for malformed entries.
        sources: names of the source data sets.
        source_of: int32, index into `sources`.
        num_images: number of distinct image paths.
        num_turned: number of those images that viewers rotate by their EXIF orientation.
        notes: keys, marks and reasons of the texts.
    """

    text_states: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    image_states: NDArray[np.uint8]
    images_of: NDArray[np.int32]
    sources: tuple[str, ...]
    source_of: NDArray[np.int32]
    num_images: int
    num_turned: int = 0
    notes: Notes = field(default_factory=Notes)

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Samples with usable text, whose tokens are known, whether or not their image is usable."""
        return np.equal(self.text_states, TextState.USABLE)

    def overlong(self, max_tokens: int) -> NDArray[np.bool_]:
        """Samples with more than `max_tokens` tokens."""
        return np.fromiter((is_overlong(tokens, max_tokens) for tokens in self.tokens), np.bool_, len(self.tokens))

    def kinds(self, max_tokens: int | None) -> NDArray[np.uint8]:
        """What a dump with this limit does with each sample: uint8, index into `KINDS`."""
        text, image = self.text_states, self.image_states
        kinds = np.full(len(text), KEPT, np.uint8)
        # Later assignments are checks that the dump makes earlier.
        kinds[(image == ImageState.BROKEN) | (text == TextState.UNSIZED)] = BROKEN
        if max_tokens is not None:
            kinds[self.overlong(max_tokens)] = OVERLONG
        kinds[text == TextState.LABEL_MASK] = LABEL_MASK
        kinds[text == TextState.BAD_CONVERSATION] = CONVERSATION
        kinds[image == ImageState.OUTSIDE] = OUTSIDE
        kinds[image == ImageState.MISSING] = MISSING
        kinds[text == TextState.MALFORMED] = MALFORMED
        kinds[text == TextState.UNANSWERED] = UNANSWERED
        return kinds


def scan_samples(scan: Scan, workers: int) -> SampleTable:
    """Read every text and every distinct image once; the result does not depend on the number of workers."""
    # A process takes a second to start; a small file is finished before that.
    with ProcessPool(scan, max(1, min(workers, len(scan) // (2 * TEXTS_PER_TASK)))) as pool:
        texts = _texts(scan, pool)
        distinct, first, which = np.unique(texts.image_keys, return_index=True, return_inverse=True)
        sample_of_image = np.repeat(np.arange(len(scan)), texts.images_of)
        own_number = np.arange(len(sample_of_image)) - (np.cumsum(texts.images_of) - texts.images_of)[sample_of_image]
        found = _images(scan, pool, np.stack([sample_of_image, own_number], 1)[first])
    return SampleTable(
        text_states=texts.states,
        tokens=texts.tokens,
        image_states=_worst(found[which, 0], sample_of_image, len(scan)),
        images_of=texts.images_of,
        sources=tuple(texts.sources),
        source_of=texts.source_of,
        num_images=len(distinct),
        num_turned=int(np.count_nonzero(found[:, 1] > 1)),
        notes=texts.notes,
    )


# a dump finds a missing file before a damaged one
_SEVERITY = (ImageState.NONE, ImageState.USABLE, ImageState.BROKEN, ImageState.OUTSIDE, ImageState.MISSING)


def _worst(states: NDArray[np.uint8], sample_of_image: NDArray[np.int64], num_samples: int) -> NDArray[np.uint8]:
    """The state of the worst image of each sample."""
    rank_of = np.argsort(np.array(_SEVERITY))  # a permutation's argsort is its inverse
    worst = np.zeros(num_samples, np.int64)
    np.maximum.at(worst, sample_of_image, rank_of[states])
    return np.array(_SEVERITY, np.uint8)[worst]


def _texts(scan: Scan, pool: ProcessPool[Scan]) -> TextBatch:
    """The texts of all samples."""
    states, tokens = np.empty(len(scan), np.uint8), np.empty(len(scan), np.int32)
    images_of, source_of = np.empty(len(scan), np.int32), np.empty(len(scan), np.int32)
    keys = [np.empty(0, np.uint64)]
    codes: dict[str, int] = {}
    notes = Notes()
    start = 0
    # disable=None: no bar if stderr is not a terminal
    with tqdm(total=len(scan), desc="texts", unit="sample", disable=None) as bar:
        for batch in pool.map(scan_texts, scan.ranges(TEXTS_PER_TASK)):
            rows = slice(start, start + len(batch.states))
            states[rows], tokens[rows], images_of[rows] = batch.states, batch.tokens, batch.images_of
            keys.append(batch.image_keys)
            renamed = np.array([codes.setdefault(name, len(codes)) for name in batch.sources], np.int32)
            source_of[rows] = renamed[batch.source_of]
            notes.add(batch.notes)
            start = rows.stop
            bar.update(len(batch.states))
    return TextBatch(
        states=states,
        tokens=tokens,
        images_of=images_of,
        image_keys=np.concatenate(keys),
        sources=list(codes),
        source_of=source_of,
        notes=notes,
    )


def _images(scan: Scan, pool: ProcessPool[Scan], first: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`scan_images` of each distinct image, given as (number of the sample, number of the image in the sample)."""
    states = np.zeros((len(first), 2), np.uint8)
    states[:, 0] = ImageState.NONE
    if not scan.reads_images:
        return states
    order = np.lexsort(first.T[::-1])  # in the order of the files
    tasks = _image_tasks(scan, first[order])
    done = 0
    with tqdm(total=len(first), desc="images", unit="image", disable=None) as bar:
        for found in pool.map(scan_images, tasks):
            states[order[done : done + len(found)]] = found
            done += len(found)
            bar.update(len(found))
    return states


def _image_tasks(scan: Scan, places: NDArray[np.int64]) -> Iterator[list[tuple[int, int]]]:
    """Places in ascending order, in tasks; those of one block are not shared out, see `Scan.ranges`."""
    stops = [numbers.stop for numbers in scan.ranges(TEXTS_PER_TASK)]
    for stop, part in zip(stops, np.split(places, np.searchsorted(places[:, 0], stops))[:-1], strict=True):
        size = max(1, len(part)) if scan.is_sequential(stop - 1) else IMAGES_PER_TASK
        for start in range(0, len(part), size):
            yield [(number, own) for number, own in part[start : start + size].tolist()]
