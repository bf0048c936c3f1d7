"""Counts the rows that every sample adds to every array of a store; the size of the store follows from them.

The first shards of the plan are counted, with the dump's own tokenizer and templates. Each shard is a random draw from
the whole data set, so a few thousand samples predict the total within about one percent.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from alignkd.pipeline.data.stats.process_pool import ProcessPool, usable_cpus
from alignkd.pipeline.data.stats.scan import image_key
from alignkd.storage.layouts.rows import sample_text
from alignkd.vlm.data.data_list import DataList, sample_files
from alignkd.vlm.data.images import open_image
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Preparation, Tokens, is_overlong
from alignkd.vlm.inputs.image_file import image_size

SAMPLES_PER_TASK = 128
SHA256 = "0" * 64
# size of an image where the number of its tokens does not depend on it
_ANY_SIZE = (0, 0)
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
        source: number of the data set.
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
    source: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.shard)

    def of_shard(self, shard: int) -> Self:
        """The samples of one shard."""
        rows = self.shard == shard
        return type(self)(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})


@dataclass(frozen=True, kw_only=True)
class SourceSize:
    """One data set of several.

    Attributes:
        num_samples: samples that are taken of it.
        share: share of its samples.
        counted, unusable: counted samples, and how many of them get no record.
        mean_tokens, mean_images: means over the counted samples that get a record.
    """

    name: str
    num_samples: int
    share: float
    counted: int
    unusable: int
    mean_tokens: float
    mean_images: float


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
        sources: the data sets; empty if no data were read.
        notes: what was not read, or was assumed.
    """

    num_samples: int
    shard_sizes: tuple[int, ...]
    rows: SampleRows
    unusable: int
    unusable_bytes: int
    exact: bool
    sources: tuple[SourceSize, ...] = ()
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
    samples: DataList,
    builder: Preparation,
    plan: Sequence[NDArray[np.int64]],
    *,
    max_tokens: int | None,
    at_least: int,
    embed: bool,
) -> DataSize:
    """Count the first shards of a plan, until they contain `at_least` samples.

    Args:
        samples: the data; images are opened, never decoded, and not looked for where a data set has no folder.
        builder: tokenizer and template.
        plan: indices of the samples of every shard.
        max_tokens: longer samples are unusable; None for no limit.
        embed: read the sizes of image files.
    """
    shards = [*_first_shards(plan, at_least)]
    counting = _Counting(samples=samples, builder=builder, max_tokens=max_tokens, embed=embed)
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
    usable = [row for row in found if len(row) > 2]
    unusable = [row for row in found if len(row) == 2]
    columns = np.array(usable, np.int64).reshape(len(usable), len(fields(SampleRows))).T
    counted = SampleRows(**{item.name: column for item, column in zip(fields(SampleRows), columns, strict=True)})
    return DataSize(
        num_samples=sum(map(len, plan)),
        shard_sizes=tuple(len(plan[shard]) for shard in shards),
        rows=counted,
        unusable=len(unusable),
        unusable_bytes=sum(num_bytes for num_bytes, _ in unusable),
        exact=len(shards) == len(plan),
        sources=tuple(_source_sizes(samples, counted, [source for _, source in unusable])),
        notes=() if samples.reads_images else ("images were not read",),
    )


def _source_sizes(samples: DataList, rows: SampleRows, unusable: Sequence[int]) -> Iterator[SourceSize]:
    """The figures of each data set; `unusable`: the data set of each counted sample without a record."""
    for number, source in enumerate(samples.sources):
        own, bad = rows.source == number, unusable.count(number)
        count = int(own.sum())
        yield SourceSize(
            name=source.name,
            num_samples=source.num_samples,
            share=source.share,
            counted=count + bad,
            unusable=bad,
            mean_tokens=float(rows.length[own].mean()) if count else 0.0,
            mean_images=float(rows.images[own].mean()) if count else 0.0,
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
           vision_tokens, queries, round(supervised_share * queries), 1, TYPICAL_IMAGE_BYTES, 0]  # fmt: skip
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

    samples: DataList
    builder: Preparation
    max_tokens: int | None
    embed: bool


def _count(counting: _Counting, numbers: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """For each usable sample the columns of `SampleRows`, for each other the bytes of its entry and its data set."""
    return [_row(counting, shard, counting.samples[index]) for shard, index in numbers]


def _row(counting: _Counting, shard: int, sample: Sample) -> tuple[int, ...]:
    reason_bytes, tokens, source = TYPICAL_REASON_BYTES, None, counting.samples.source_of(sample.index)
    try:
        tokens = _tokens(counting.builder, sample)
    except SampleError as error:
        reason_bytes = len(str(error).encode("utf-8", "replace"))
    limit = counting.max_tokens
    if tokens is None or _lacks_image(sample) or (limit is not None and is_overlong(tokens.positions.length, limit)):
        return len(sample.id.encode("utf-8", "replace")) + reason_bytes, source
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
        sum(_file_sizes(sample)) if counting.embed else 0,
        source,
    )


def _tokens(builder: Preparation, sample: Sample) -> Tokens:
    """The tokens of a sample; image files are read where the number of vision tokens depends on their size.

    Raises:
        SampleError: an unusable sample.
    """
    if sample.problem is not None:
        raise SampleError(sample.problem)
    sizes = [_ANY_SIZE] * len(sample.images)
    if builder.vision_tokens is None:
        sizes = [image_size(content) for content in sample_files(sample)]
    return builder.tokenize(sample.turns, sizes)


def _lacks_image(sample: Sample) -> bool:
    """Whether an image file cannot be opened; without a folder nothing is looked for."""
    try:
        for image in _in_folder(sample):
            if sample.folder is not None:
                open_image(sample.folder, image).close()
    except SampleError:
        return True
    return False


def _in_folder(sample: Sample) -> list[str]:
    """The images of a sample that are files of their own."""
    contents = sample.contents or (None,) * len(sample.images)
    return [image for image, content in zip(sample.images, contents, strict=True) if content is None]


def _stored_text(sample: Sample) -> bytes:
    text = sample_text(sample.conversations(), sample.images, [SHA256] * len(sample.images))
    return text.encode("utf-8", "surrogatepass")


def _file_sizes(sample: Sample) -> Iterator[int]:
    yield from (len(content) for content in sample.contents if content is not None)
    for path in _in_folder(sample):
        yield (sample.folder / path).stat().st_size if sample.folder is not None else TYPICAL_IMAGE_BYTES


def _first_shards(plan: Sequence[NDArray[np.int64]], at_least: int) -> Iterator[int]:
    counted = 0
    for number, shard in enumerate(plan):
        if counted >= at_least:
            return
        counted += len(shard)
        yield number
