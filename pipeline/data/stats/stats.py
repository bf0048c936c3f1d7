"""Statistics of a data set and of the samples that a dump would use, per source data set: the paper's table 2."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.data.answers import GeneratedStats
from alignkd.pipeline.data.opening import data_sets, open_with_progress
from alignkd.pipeline.data.stats.figures import DataStats, FileStats, ImagesChecked
from alignkd.pipeline.data.stats.histogram import make_histogram
from alignkd.pipeline.data.stats.listing import dropped_samples, write_listing
from alignkd.pipeline.data.stats.notes import most_frequent
from alignkd.pipeline.data.stats.rendered import rendered_sample
from alignkd.pipeline.data.stats.scan import Scan, TextState
from alignkd.pipeline.data.stats.summary import summarise
from alignkd.pipeline.data.stats.table import KEPT, SampleTable, scan_samples
from alignkd.vlm.data.formats.entry_file import EntryFile
from alignkd.vlm.data.formats.json_file import JsonFile
from alignkd.vlm.data.formats.paths import data_files
from alignkd.vlm.data.formats.recognise import kind_of_file
from alignkd.vlm.data.source import Answers
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.settings import ProcessorKind

NUM_FIRST_UNUSABLE = 10


@dataclass(frozen=True, kw_only=True)
class StatsJob:
    """The data to count, and how.

    Attributes:
        conversations: data sets, each a file, a folder or a pattern, see `DataSet.path`.
        images: folder of the images; with None, only images in the data files are read.
        roles, system, answers, pairs: see `DataSet`.
        template: prompt template; None is the checkpoint's own.
        max_tokens: limits to compare.
        checkpoint: folder or hub id, whose tokenizer and number of vision tokens decide the lengths.
        vision_config: folder with the vision tower's config.json, overriding the checkpoint's `mm_vision_tower`.
        processor: image processor, see `CheckpointFolder`.
        decode: decode every image instead of only opening it.
        workers: number of processes.
        listing: JSON lines file to write with every dropped sample; None for no listing.
    """

    conversations: tuple[Path, ...]
    images: Path | None
    roles: Mapping[str, str] = field(default_factory=dict)
    system: str | None = None
    answers: Answers = "given"
    pairs: bool = False
    template: str | None = None
    max_tokens: tuple[int, ...] = (512, 2048)
    checkpoint: str
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    decode: bool = True
    workers: int = 1
    listing: Path | None = None


def data_stats(job: StatsJob) -> DataStats:
    """Read the data, count tokens and check images; no weights are loaded.

    Raises:
        InputError: a file cannot be read, no such image folder, or an unusable checkpoint.
    """
    started = time.monotonic()
    reading = {"roles": job.roles, "system": job.system, "answers": job.answers, "pairs": job.pairs}
    sets = data_sets(job.conversations, images=job.images, **reading)  # type: ignore[arg-type]  # as named above
    for data in sets:
        for file in data_files(data.path):
            kind_of_file(file)  # a wrong path is reported before the checkpoint is looked for
    checkpoint = _opened(job)
    builder = checkpoint.preparation(job.template)
    sources = tuple(map(open_with_progress, sets))
    scan = Scan(sources=sources, builder=builder, decode=job.decode)
    table = scan_samples(scan, job.workers)
    _check_sized(job, table)
    for source in sources:
        table.notes.keys.update(source.not_read)
    images_checked: ImagesChecked = ("decoded" if job.decode else "opened") if scan.reads_images else "no"
    unusable = np.flatnonzero(table.kinds(None) != KEPT)
    total, by_source, by_data_set = summarise(table, scan.ends, job.max_tokens, images_checked)
    lengths, length_counts = np.unique(table.tokens[table.counted].astype(np.int64), return_counts=True)
    return DataStats(
        files=tuple(_file_stats(file) for source in sources for file in source.files),
        checkpoint=job.checkpoint,
        template=builder.template_fingerprint.partition(":")[0],
        images_checked=images_checked,
        num_images=table.num_images,
        num_turned=table.num_turned if images_checked == "decoded" else None,
        keys_not_read=most_frequent(table.notes.keys),
        marks=most_frequent(table.notes.marks),
        warnings=tuple(builder.warnings()),
        generated=GeneratedStats.of(table.notes.answers),
        questions=table.notes.answers.questions,
        rendered=rendered_sample(scan, table),
        text_reasons=most_frequent(table.notes.reasons),
        sources=by_source,
        data_sets=tuple(
            replace(figures, source=str(source.path)) for source, figures in zip(sources, by_data_set, strict=True)
        ),
        total=total,
        histogram=make_histogram(lengths, length_counts, job.max_tokens),
        num_unusable=len(unusable),
        unusable=tuple(dropped_samples(scan, table, job.max_tokens, unusable[:NUM_FIRST_UNUSABLE])),
        num_listed=None if job.listing is None else write_listing(job.listing, scan, table, job.max_tokens),
        seconds=time.monotonic() - started,
        lengths=lengths,
        length_counts=length_counts,
    )


def _opened(job: StatsJob) -> Checkpoint:
    try:
        return open_checkpoint(job.checkpoint, vision_config=job.vision_config, weights=False, processor=job.processor)
    except InputError as error:
        raise InputError(
            f"--checkpoint {error}; this model's tokenizer and image processor count the tokens: give the teacher's or "
            "the student's checkpoint by --checkpoint"
        ) from error


def _check_sized(job: StatsJob, table: SampleTable) -> None:
    if count := int(np.count_nonzero(table.text_states == TextState.NO_FOLDER)):
        raise InputError(
            f"{job.checkpoint}: its vision tokens depend on the size of the image, and no size can be read for "
            f"{format_count(count, 'sample')}; give the folder of the images by --images"
        )


def _file_stats(file: EntryFile) -> FileStats:
    # to hash the other formats would read each file once more
    sha256 = file.sha256 if isinstance(file, JsonFile) else None
    return FileStats(file=str(file.path), samples=len(file), sha256=sha256)
