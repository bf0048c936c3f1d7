"""Counts the rows that every sample adds to every array of a store; the size of the store follows from them.

The first shards of the plan are counted, with the dump's own tokenizer and templates. Each shard is a random draw from
the whole data set, so a few thousand samples predict the total within about one percent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alignkd.pipeline.data.process_pool import ProcessPool, usable_cpus
from alignkd.pipeline.data.scan import ImageState, Scan, TextState, image_key, judge_image, judge_text, tokens_of
from alignkd.storage.layouts.rows import sample_text
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.inputs.examples import is_overlong

SAMPLES_PER_TASK = 128
SHA256 = "0" * 64
# assumptions for `--samples N --mean-tokens T`, without data: bytes of UTF-8 per token of LLaVA's conversations, and
# tokens of the system prompt before an image
BYTES_PER_TOKEN = 4.0
TOKENS_BEFORE_IMAGE = 36
TYPICAL_ID_BYTES = 12
TYPICAL_FIELDS_BYTES = 220
TYPICAL_IMAGE_BYTES = 90_000
TYPICAL_REASON_BYTES = 150


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRows:
    """The rows of each sample that gets a record; int64 [samples] in the order of the plan.

    Attributes:
        shard: shard of the sample.
        text: bytes of the stored conversation and image paths.
        id: bytes of the user's id.
        tokens: number of ids.
        length: number of embedded tokens.
        images: number of images.
        vision: vision tokens of all images.
        queries: text positions after the last image.
        supervised: positions whose next token has a label.
        image: hash of the image paths; 0 without an image.
        image_bytes: bytes of the image files; 0 if they were not read.
    """

    shard: NDArray[np.int64]
    text: NDArray[np.int64]
    id: NDArray[np.int64]
    tokens: NDArray[np.int64]
    length: NDArray[np.int64]
    images: NDArray[np.int64]
    vision: NDArray[np.int64]
    queries: NDArray[np.int64]
    supervised: NDArray[np.int64]
    image: NDArray[np.int64]
    image_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    def of_shard(self, shard: int) -> Self:
        """The samples of one shard."""
        rows = self.shard == shard
        return type(self)(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


@dataclass(frozen=True, kw_only=True, eq=False)
class DataSize:
    """A data set, counted completely or in part.

    Attributes:
        num_samples: number of samples of the whole data set.
        shard_sizes: planned samples of the counted shards.
        rows: rows of the counted samples that get a record.
        unusable: number of counted samples that get no record.
        unusable_bytes: bytes of their entries in the commit records.
        exact: every sample was counted.
        notes: what was not read, or was assumed.
    """

    num_samples: int
    shard_sizes: tuple[int, ...]
    rows: SampleRows
    unusable: int
    unusable_bytes: int
    exact: bool
    notes: tuple[str, ...] = ()

    @property
    def counted(self) -> int:
        """Number of counted samples."""
        return sum(self.shard_sizes)

    @property
    def num_records(self) -> float:
        """Approximate number of records of the whole store."""
        return self.num_samples * len(self.rows) / max(1, self.counted)

    def longest(self, max_tokens: int | None) -> int:
        """Embedded tokens of the longest sample; if some were not counted, one may be as long as `max_tokens`."""
        counted = int(self.rows.length.max(initial=1))
        return counted if self.exact or max_tokens is None else max(counted, max_tokens)

    def most(self, name: str, max_tokens: int | None) -> int:
        """Largest number of `queries` or `supervised` positions of a sample, allowing for longer, uncounted samples."""
        more = self.longest(max_tokens) - int(self.rows.length.max(initial=1))
        return int(getattr(self.rows, name).max(initial=0)) + more

    def mean(self, name: str) -> float:
        """Mean of a column of `rows`."""
        values = getattr(self.rows, name)
        return float(values.mean()) if len(values) else 0.0


def count_samples(
    scan: Scan, plan: Sequence[NDArray[np.int64]], *, max_tokens: int | None, at_least: int, embed: bool
) -> DataSize:
    """Count the first shards of a plan, until they contain `at_least` samples.

    Args:
        scan: the data and how to tokenise it; images are opened, never decoded.
        plan: indices of the samples of every shard.
        max_tokens: longer samples are unusable; None for no limit.
        embed: read the sizes of image files.
    """
    shards = [*_first_shards(plan, at_least)]
    counting = _Counting(scan=scan, max_tokens=max_tokens, embed=embed)
    numbers = [(shard, int(index)) for shard in shards for index in plan[shard]]
    tasks = [numbers[start : start + SAMPLES_PER_TASK] for start in range(0, len(numbers), SAMPLES_PER_TASK)]
    found: list[tuple[int, ...]] = []
    # disable=None: no bar if stderr is not a terminal
    with (
        ProcessPool(counting, min(usable_cpus(), max(1, len(tasks) // 8))) as pool,
        tqdm(total=len(numbers), desc="count", unit="sample", disable=None) as bar,
    ):
        for rows in pool.map(_count, tasks):
            found += rows
            bar.update(SAMPLES_PER_TASK)
    usable = [row for row in found if len(row) > 1]
    columns = np.array(usable, np.int64).reshape(len(usable), len(fields(SampleRows))).T
    return DataSize(
        num_samples=sum(map(len, plan)),
        shard_sizes=tuple(len(plan[shard]) for shard in shards),
        rows=SampleRows(**{item.name: column for item, column in zip(fields(SampleRows), columns, strict=True)}),
        unusable=len(found) - len(usable),
        unusable_bytes=sum(row[0] for row in found if len(row) == 1),
        exact=len(shards) == len(plan),
        notes=() if scan.images is not None else ("images were not read",),
    )


def assumed_samples(
    num_samples: int,
    mean_tokens: float,
    *,
    shard_size: int,
    vision_tokens: int,
    supervised_share: float,
    plain: bool,
    expanded_before: int | None = None,
) -> DataSize:
    """A data set of which only the size is known: every sample has one image and the mean length.

    Args:
        mean_tokens: mean number of embedded tokens (text + vision).
        vision_tokens: vision tokens of the image.
        supervised_share: supervised share of the text tokens after the image.
        plain: template `plain`, without a system prompt before the image.
        expanded_before: for models whose ids have one entry per vision token: text tokens before the image.
    """
    text = max(2, round(mean_tokens) - vision_tokens)
    before = 1 if plain else min(TOKENS_BEFORE_IMAGE if expanded_before is None else expanded_before, text // 2)
    ids = text + 1 if expanded_before is None else text + vision_tokens
    queries = text - before
    shards = -(-num_samples // shard_size)
    size = min(shard_size, num_samples)
    row = [0, round(BYTES_PER_TOKEN * text) + TYPICAL_FIELDS_BYTES, TYPICAL_ID_BYTES, ids, text + vision_tokens, 1,
           vision_tokens, queries, round(supervised_share * queries), 1, TYPICAL_IMAGE_BYTES]  # fmt: skip
    columns = np.tile(np.array(row, np.int64)[:, None], size)
    rows = {item.name: column.copy() for item, column in zip(fields(SampleRows), columns, strict=True)}
    rows["image"] = np.arange(1, size + 1)
    return DataSize(
        num_samples=num_samples,
        shard_sizes=(size,),
        rows=SampleRows(**rows),
        unusable=0,
        unusable_bytes=0,
        exact=shards == 1,
        notes=(
            f"no data was read: every sample is assumed to have one image of {vision_tokens} vision tokens, "
            f"{text + vision_tokens} tokens and "
            f"{supervised_share:.0%} of the {queries} text tokens after the image supervised",
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Counting:
    """The context of a worker process."""

    scan: Scan
    max_tokens: int | None
    embed: bool


def _count(counting: _Counting, numbers: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each usable sample the columns of `SampleRows`, for each other sample only the bytes of its entry."""
    return [_row(counting, shard, counting.scan.find(index)[1]) for shard, index in numbers]


def _row(counting: _Counting, shard: int, sample: Sample) -> tuple[int, ...]:
    scan = counting.scan
    state, length, reason = judge_text(scan, sample)
    image_state = judge_image(scan, sample)[0] if state == TextState.USABLE else ImageState.NONE
    broken = image_state not in (ImageState.NONE, ImageState.USABLE)
    overlong = counting.max_tokens is not None and is_overlong(length, counting.max_tokens)
    if state != TextState.USABLE or broken or overlong:
        return (len(sample.id.encode("utf-8", "replace")) + (len(reason.encode()) or TYPICAL_REASON_BYTES),)
    tokens = tokens_of(scan, sample)
    positions = tokens.positions
    return (
        shard,
        len(_stored_text(sample)),
        len(sample.id.encode("utf-8", "surrogatepass")),
        len(tokens.input_ids),
        positions.length,
        positions.num_images,
        len(positions.vision_positions),
        len(positions.tqv_query_positions),
        len(positions.supervised_positions),
        image_key("\0".join(sample.images)) >> 1 if sample.images else 0,  # 63 bits
        sum(_file_sizes(scan.images, sample)) if counting.embed else 0,
    )


def _stored_text(sample: Sample) -> bytes:
    text = sample_text(sample.conversations(), sample.images, [SHA256] * len(sample.images))
    return text.encode("utf-8", "surrogatepass")


def _file_sizes(folder: Path | None, sample: Sample) -> Iterator[int]:
    for path in sample.images:
        yield (folder / path).stat().st_size if folder is not None else TYPICAL_IMAGE_BYTES


def _first_shards(plan: Sequence[NDArray[np.int64]], at_least: int) -> Iterator[int]:
    counted = 0
    for number, shard in enumerate(plan):
        if counted >= at_least:
            return
        counted += len(shard)
        yield number
