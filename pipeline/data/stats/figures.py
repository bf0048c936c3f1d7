"""The figures of `alignkd data stats`, for the terminal and for scripts."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.data.answers import GeneratedStats
from alignkd.pipeline.data.stats.histogram import Histogram

ImagesChecked = Literal["no", "opened", "decoded"]
NOTHING = np.zeros(0, np.int64)
MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class LimitStats:
    """What a dump with this `max_tokens` does with the samples that are not missing, masked, unanswered or `other`.

    An overlong sample with a damaged image counts as overlong, because its image is never decoded. So
    `kept + overlong + image_broken` of a limit and `image_missing + label_mask + unanswered + other` of the source add
    up to all samples.
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
        several_images: samples with more than one image.
        image_missing: samples with a missing image file; None if images were not read.
        image_broken: samples with an image that cannot be decoded, of any length; None if images were not read.
        label_mask: samples without a supervised token in the original code.
        unanswered: samples with a question without an answer, which `alignkd generate` writes.
        other: malformed entries, invalid conversations, images outside the image folder.
        usable: all other samples, which a dump without a limit keeps.
        counted: samples with usable text. The token figures cover these samples and are None without any.
    """

    source: str
    samples: int
    text_only: int
    several_images: int
    image_missing: int | None
    image_broken: int | None
    label_mask: int
    unanswered: int
    other: int
    usable: int
    counted: int
    mean_tokens: float | None
    median_tokens: float | None
    max_tokens: int | None
    limits: tuple[LimitStats, ...]


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A dropped sample.

    Attributes:
        index: record number in `file`, from 0.
        kind: one of `KINDS`, or the option of a filter; `overlong` if the sample has no other problem.
        tokens: number of embedded tokens; None if the text is unusable.
        overlong_for: the limits that it exceeds.
        reason: the reason that the dump gives.
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
    """Whether `path` is a list of dropped samples (`stats/listing.py`), by the keys of its first line."""
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and entry.keys() == {field.name for field in fields(Dropped)}


@dataclass(frozen=True, kw_only=True)
class FileStats:
    """One file of a data set.

    Attributes:
        sha256: of its bytes, of a gzipped file of what it unpacks to; None where the file is not read as a whole.
    """

    file: str
    samples: int
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a rendered sample.

    Attributes:
        supervised: whether the student learns to write it.
    """

    text: str
    supervised: bool


@dataclass(frozen=True, kw_only=True)
class RenderedSample:
    """The text that the model gets of one sample, special tokens included."""

    file: str
    index: int
    id: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataStats:
    """All figures.

    Attributes:
        images_checked: how images were checked.
        num_images: number of distinct image paths.
        num_turned: number of images whose EXIF orientation is not 1; None unless images were decoded.
        keys_not_read: ignored key -> number of samples with it; a key of a turn is `conversations[].KEY`.
        marks: mark such as `<video>`, which is kept as text -> number of usable samples without an image that have it.
        generated: answers that a model wrote; None without any.
        questions: questions without an answer.
        warnings: what a user should know of the chat template before training with it.
        rendered: one usable sample as the model gets it; None without one.
        text_reasons: reason -> number of samples whose text is unusable for it.
        sources: figures of each source (the first folder in the path of an image), the largest first.
        data_sets: figures of each given file, folder or pattern, in order; `source` is its path.
        histogram: histogram of the tokens of all counted samples.
        num_unusable: number of samples that are dropped with any limit.
        unusable: the first few of these samples.
        num_listed: number of samples in the written listing (all that some limit drops); None without a listing.
        lengths, length_counts: distinct numbers of tokens, and the number of samples with each.
    """

    files: tuple[FileStats, ...]
    checkpoint: str
    template: str
    images_checked: ImagesChecked
    num_images: int
    num_turned: int | None
    keys_not_read: dict[str, int]
    marks: dict[str, int]
    generated: GeneratedStats | None
    questions: int
    warnings: tuple[str, ...]
    rendered: RenderedSample | None
    text_reasons: dict[str, int]
    sources: tuple[SourceStats, ...]
    data_sets: tuple[SourceStats, ...]
    total: SourceStats
    histogram: Histogram
    num_unusable: int
    unusable: tuple[Dropped, ...]
    num_listed: int | None
    seconds: float
    lengths: NDArray[np.int64]
    length_counts: NDArray[np.int64]

    def to_json(self) -> dict[str, Any]:
        """All figures except the exact distribution of lengths."""
        values = asdict(replace(self, lengths=NOTHING, length_counts=NOTHING))
        return {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
