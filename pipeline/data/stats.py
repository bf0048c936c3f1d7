"""Statistics of a data set and of the samples that a dump would use, per source data set: the paper's table 2."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from alignkd.disk.next_step import tried
from alignkd.pipeline.data.figures import DataStats, FileStats, ImagesChecked
from alignkd.pipeline.data.histogram import make_histogram
from alignkd.pipeline.data.listing import dropped_samples, write_listing
from alignkd.pipeline.data.notes import most_frequent
from alignkd.pipeline.data.rendered import rendered_sample
from alignkd.pipeline.data.scan import Scan, TextState
from alignkd.pipeline.data.summary import summarise
from alignkd.pipeline.data.table import KEPT, SampleTable, scan_samples
from alignkd.vlm.data.conversations import ConversationFile
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.settings import ProcessorKind

NUM_FIRST_UNUSABLE = 10


@dataclass(frozen=True, kw_only=True)
class StatsJob:
    """The data to count, and how.

    Attributes:
        conversations: LLaVA-style JSON lists or JSON lines.
        images: folder of the images; None reads no image.
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
    template: str | None
    max_tokens: tuple[int, ...]
    checkpoint: str
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    decode: bool = True
    workers: int = 1
    listing: Path | None = None

    @property
    def images_checked(self) -> ImagesChecked:
        """How images are checked."""
        if self.images is None:
            return "no"
        return "decoded" if self.decode else "opened"


def data_stats(job: StatsJob) -> DataStats:
    """Read the data, count tokens and check images; no weights are loaded.

    Raises:
        InputError: a file cannot be read, no such image folder, or an unusable checkpoint.
    """
    started = time.monotonic()
    if job.images is not None and not job.images.is_dir():
        raise InputError(f"{tried(job.images)}: no such image folder; give the folder of the image paths")
    checkpoint = open_checkpoint(
        job.checkpoint, vision_config=job.vision_config, weights=False, processor=job.processor
    )
    builder = checkpoint.preparation(job.template)
    files = tuple(open_with_progress(path) for path in job.conversations)
    scan = Scan(files=files, builder=builder, images=job.images, decode=job.decode)
    table = scan_samples(scan, job.workers)
    _check_sized(job, table)
    unusable = np.flatnonzero(table.kinds(None) != KEPT)
    total, sources = summarise(table, job.max_tokens, job.images_checked)
    lengths, length_counts = np.unique(table.tokens[table.counted].astype(np.int64), return_counts=True)
    return DataStats(
        files=tuple(FileStats(file=str(file.path), samples=len(file), sha256=file.sha256) for file in files),
        checkpoint=job.checkpoint,
        template=builder.template_fingerprint.partition(":")[0],
        images_checked=job.images_checked,
        num_images=table.num_images,
        num_turned=table.num_turned if job.images_checked == "decoded" else None,
        keys_not_read=most_frequent(table.notes.keys),
        marks=most_frequent(table.notes.marks),
        warnings=tuple(builder.warnings()),
        rendered=rendered_sample(scan, table),
        text_reasons=most_frequent(table.notes.reasons),
        sources=sources,
        total=total,
        histogram=make_histogram(lengths, length_counts, job.max_tokens),
        num_unusable=len(unusable),
        unusable=tuple(dropped_samples(scan, table, job.max_tokens, unusable[:NUM_FIRST_UNUSABLE])),
        num_listed=None if job.listing is None else write_listing(job.listing, scan, table, job.max_tokens),
        seconds=time.monotonic() - started,
        lengths=lengths,
        length_counts=length_counts,
    )


def _check_sized(job: StatsJob, table: SampleTable) -> None:
    if job.images is None and (count := int(np.count_nonzero(table.text_states == TextState.UNSIZED))):
        raise InputError(
            f"{job.checkpoint}: its vision tokens depend on the size of the image, and {count} samples have images; "
            "give their folder by --images"
        )


def open_with_progress(path: Path) -> ConversationFile:
    """Index the file, with a progress bar on a terminal."""
    with tqdm(desc=f"read {path.name}", unit="B", unit_scale=True, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return ConversationFile(path, progress=progress)
