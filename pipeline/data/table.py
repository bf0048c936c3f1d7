"""One row of small numbers per sample, filled by worker processes: about 17 bytes per sample, no text."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pipeline.data.scan import NO_IMAGE_KEY, ImageState, Scan, TextState, scan_images, scan_texts
from pipeline.workers import Workers
from vlm.examples import is_overlong

TEXTS_PER_TASK = 256
IMAGES_PER_TASK = 32

# What becomes of a sample, by the order in which the dump finds out.
KINDS = (
    "kept",
    "malformed",
    "image_missing",
    "image_outside",
    "conversation",
    "label_mask",
    "overlong",
    "image_broken",
)
KEPT, MALFORMED, MISSING, OUTSIDE, CONVERSATION, LABEL_MASK, OVERLONG, BROKEN = range(len(KINDS))


@dataclass(frozen=True, kw_only=True)
class SampleTable:
    """What is known of every sample; arrays of [samples].

    Attributes:
        text_states: uint8, `TextState`.
        tokens: int32, embedded tokens, 0 where the text is unusable.
        image_states: uint8, `ImageState`.
        has_image: bool, of entries that are not malformed.
        sources: names of the source data sets.
        source_of: int32, index into `sources`.
        num_images: distinct image paths.
    """

    text_states: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    image_states: NDArray[np.uint8]
    has_image: NDArray[np.bool_]
    sources: tuple[str, ...]
    source_of: NDArray[np.int32]
    num_images: int

    @property
    def counted(self) -> NDArray[np.bool_]:
        """Samples whose tokens are known: those whose text is usable, whatever their image."""
        return np.equal(self.text_states, TextState.USABLE)

    def overlong(self, max_tokens: int) -> NDArray[np.bool_]:
        """Samples with more tokens than that."""
        return np.fromiter((is_overlong(tokens, max_tokens) for tokens in self.tokens), np.bool_, len(self.tokens))

    def kinds(self, max_tokens: int | None) -> NDArray[np.uint8]:
        """What a dump with this limit does with each sample: uint8, index into `KINDS`."""
        text, image = self.text_states, self.image_states
        kinds = np.full(len(text), KEPT, np.uint8)
        # Later assignments are what the dump finds earlier.
        kinds[image == ImageState.BROKEN] = BROKEN
        if max_tokens is not None:
            kinds[self.overlong(max_tokens)] = OVERLONG
        kinds[text == TextState.LABEL_MASK] = LABEL_MASK
        kinds[text == TextState.BAD_CONVERSATION] = CONVERSATION
        kinds[image == ImageState.OUTSIDE] = OUTSIDE
        kinds[image == ImageState.MISSING] = MISSING
        kinds[text == TextState.MALFORMED] = MALFORMED
        return kinds


def scan_samples(scan: Scan, workers: int) -> SampleTable:
    """Look at every text and at every distinct image once; the result is the same for any number of workers."""
    # A process costs a second to start: a small file is done before.
    with Workers(scan, max(1, min(workers, len(scan) // (2 * TEXTS_PER_TASK)))) as pool:
        states, tokens, keys, sources, source_of = _texts(scan, pool)
        distinct, first = np.unique(keys, return_index=True)
        first = first[distinct != NO_IMAGE_KEY]
        distinct = distinct[distinct != NO_IMAGE_KEY]
        image_states = _images(scan, pool, first)
    has_image = keys != NO_IMAGE_KEY
    states_of_samples = np.full(len(keys), ImageState.NONE, np.uint8)
    states_of_samples[has_image] = image_states[np.searchsorted(distinct, keys[has_image])]
    return SampleTable(
        text_states=states,
        tokens=tokens,
        image_states=states_of_samples,
        has_image=has_image,
        sources=sources,
        source_of=source_of,
        num_images=len(distinct),
    )


def _texts(
    scan: Scan, pool: Workers[Scan]
) -> tuple[NDArray[np.uint8], NDArray[np.int32], NDArray[np.uint64], tuple[str, ...], NDArray[np.int32]]:
    """States, tokens, image keys, source names, source of each sample."""
    states, tokens = np.empty(len(scan), np.uint8), np.empty(len(scan), np.int32)
    keys, source_of = np.empty(len(scan), np.uint64), np.empty(len(scan), np.int32)
    codes: dict[str, int] = {}
    start = 0
    # disable=None: quiet when stderr is not a terminal
    with tqdm(total=len(scan), desc="texts", unit="sample", disable=None) as bar:
        for batch in pool.map(scan_texts, _ranges(len(scan), TEXTS_PER_TASK)):
            rows = slice(start, start + len(batch.states))
            states[rows], tokens[rows], keys[rows] = batch.states, batch.tokens, batch.image_keys
            renamed = np.array([codes.setdefault(name, len(codes)) for name in batch.sources], np.int32)
            source_of[rows] = renamed[batch.source_of]
            start = rows.stop
            bar.update(len(batch.states))
    return states, tokens, keys, tuple(codes), source_of


def _images(scan: Scan, pool: Workers[Scan], first: NDArray[np.int64]) -> NDArray[np.uint8]:
    """`ImageState` of each distinct image, given the first sample of each."""
    states = np.full(len(first), ImageState.NONE, np.uint8)
    if scan.images is None:
        return states
    order = np.argsort(first)  # as they stand in the files
    tasks = (first[order[rows]].tolist() for rows in _slices(len(order), IMAGES_PER_TASK))
    done = 0
    with tqdm(total=len(first), desc="images", unit="image", disable=None) as bar:
        for found in pool.map(scan_images, tasks):
            states[order[done : done + len(found)]] = found
            done += len(found)
            bar.update(len(found))
    return states


def _ranges(total: int, size: int) -> Iterator[range]:
    return (range(start, min(start + size, total)) for start in range(0, total, size))


def _slices(total: int, size: int) -> Iterator[slice]:
    return (slice(rows.start, rows.stop) for rows in _ranges(total, size))
