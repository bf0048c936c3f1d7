"""The figures of `alignkd data stats`, as they are printed and given to scripts."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.data.histogram import Histogram

ImagesChecked = Literal["no", "opened", "decoded"]
NOTHING = np.zeros(0, np.int64)
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LimitStats:
    """What a dump with this `max_tokens` does with the samples that are not missing, masked or `other`.

    An overlong sample with a broken image counts as overlong, as its image is never decoded. So
    `kept + overlong + image_broken` of a limit and `image_missing + label_mask + other` of the source are all samples.
    """

    max_tokens: int
    kept: int
    overlong: int
    image_broken: int


@dataclass(frozen=True, kw_only=True)
class SourceStats:
    """One source data set, or all of them.

    Attributes:
        text_only: samples without an image.
        several_images: samples with more than one.
        image_missing: samples of which an image file is not there; None if nobody looked.
        image_broken: samples of which an image does not decode, of whatever length; None if nobody looked.
        label_mask: samples on which the original would train on nothing.
        other: malformed entries, bad conversations, images outside the image folder.
        usable: the rest: what a dump without a limit keeps.
        counted: samples whose text is usable; the token figures are theirs. None where there are none.
    """

    source: str
    samples: int
    text_only: int
    several_images: int
    image_missing: int | None
    image_broken: int | None
    label_mask: int
    other: int
    usable: int
    counted: int
    mean_tokens: float | None
    median_tokens: float | None
    max_tokens: int | None
    limits: tuple[LimitStats, ...]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A sample that is dropped.

    Attributes:
        index: its position in `file`.
        kind: one of `KINDS`; `overlong` if nothing else is wrong with it.
        tokens: embedded tokens, None if its text is unusable.
        overlong_for: the limits it exceeds.
        reason: in the words of the dump.
    """

    file: str
    index: int
    id: str
    source: str
    kind: str
    tokens: int | None
    overlong_for: list[int]
    reason: str


def is_listing(path: Path) -> bool:
    """Whether `path` is a list of dropped samples (`alignkd.pipeline.data.listing`): its first line has their keys."""
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and entry.keys() == {field.name for field in fields(Dropped)}


@dataclass(frozen=True, kw_only=True)
class FileStats:
    """One file of the data set."""

    file: str
    samples: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class DataStats:
    """All figures.

    Attributes:
        images_checked: `decoded`, `opened` or `no`.
        num_images: distinct image paths.
        num_turned: of them, images whose EXIF orientation is not 1; None unless they were decoded.
        keys_not_read: samples with a key that is not read, by the key; those of turns as `conversations[].KEY`.
        marks: usable samples without an image, by a mark such as `<video>` that is kept as text.
        text_reasons: samples whose text is unusable, by the reason.
        sources: largest first.
        histogram: of the tokens of all counted samples.
        num_unusable: samples that are dropped whatever the limit.
        unusable: the first few of them.
        num_listed: samples in the listing, if one was written: all that some limit drops.
        lengths, length_counts: distinct numbers of tokens and how many samples have each.
    """

    files: tuple[FileStats, ...]
    checkpoint: str
    template: str
    images_checked: ImagesChecked
    num_images: int
    num_turned: int | None
    keys_not_read: dict[str, int]
    marks: dict[str, int]
    text_reasons: dict[str, int]
    sources: tuple[SourceStats, ...]
    total: SourceStats
    histogram: Histogram
    num_unusable: int
    unusable: tuple[Dropped, ...]
    num_listed: int | None
    seconds: float
    lengths: NDArray[np.int64]
    length_counts: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """Everything but the exact distribution of lengths."""
        values = asdict(replace(self, lengths=NOTHING, length_counts=NOTHING))
        return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
