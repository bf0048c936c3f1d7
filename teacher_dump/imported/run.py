"""Brings other tools' log-probabilities into a store: read, match, compare tokens, align, append, commit.

No model runs. Every sample is tokenised as in a dump, and its row must have the same tokens. A store is written shard
by shard as in a dump, so it resumes in the same way.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from alignkd.disk.next_step import tried
from alignkd.storage.codecs.settings import LogitsCodec
from alignkd.storage.errors import RecordError
from alignkd.storage.files.location import check_location
from alignkd.storage.read.store import StoreReader
from alignkd.storage.record.record import Record
from alignkd.storage.write.shard import ShardWriter
from alignkd.storage.write.store import StoreWriter, open_writer
from alignkd.teacher_dump.imported.alignment import supervised_rows
from alignkd.teacher_dump.imported.formats.registry import Alignment, Format
from alignkd.teacher_dump.imported.job import ImportJob, ImportResult
from alignkd.teacher_dump.imported.kept import Kept, logits_of
from alignkd.teacher_dump.imported.manifest import import_manifest
from alignkd.teacher_dump.imported.matching import RowNumbers
from alignkd.teacher_dump.imported.reading import files_sha256, kept_entries, knows_tail, open_files, read_rows
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.teacher_dump.imported.shift import PROBED, probe, shift_of
from alignkd.teacher_dump.imported.spool import RowSpool
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads, Prepared, Unusable, Window
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSource
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.inputs.examples import Preparation

WINDOW = 64
NUM_THREADS = 2


def import_targets(job: ImportJob) -> ImportResult:
    """Write the shards of the plan that are not committed yet.

    Raises:
        InputError: unusable files, data or checkpoint, too many unusable samples, or distributions that are shifted.
        StoreError: the store has other settings, or cannot be written.
    """
    started = time.monotonic()
    check_location(job.store, writing=True)
    files = open_files(job)
    samples = open_data(job.data)
    _check_data(job, samples)
    job = replace(job, inputs=job.inputs or ("embed" if samples.holds_images else "reference"))
    checkpoint = open_checkpoint(job.checkpoint, vision_config=job.vision_config, processor=job.processor)
    preparation = checkpoint.preparation(job.template, max_tokens=job.max_tokens)
    for warning in preparation.warnings():
        job.control.notice(warning)
    with RowSpool() as spool:
        numbers = read_rows(job, files, spool)
        numbers.check(len(samples), job.data.path)
        rows = _Rows(spool=spool, numbers=numbers)
        logits = LogitsCodec(
            kind="topk",
            top_k=min(kept_entries(job, spool), checkpoint.config.vocab_size),
            dtype=job.dtype,
            tail=None if knows_tail(job, files[0].format) else "unknown",
        )
        kept = _kept(job, logits, checkpoint, preparation)
        alignment = _alignment(job, samples, preparation, rows, format=files[0].format, kept=kept)
        attachments = checkpoint.attachments()
        manifest = import_manifest(
            job,
            checkpoint,
            preparation,
            samples,
            format=files[0].format,
            match=numbers.match,
            alignment=alignment,
            logits=logits,
            files=files_sha256(files),
            attachments=attachments,
        )
        store = open_writer(job.store, manifest, attachments=attachments)
        run = _Run(job, preparation, samples, rows, store, kept=kept, shift=shift_of(files[0].format, alignment))
        with job.control.over(store) as shards:
            run.write(shards)
        return run.result(files[0].format, alignment, time.monotonic() - started)


@dataclass(frozen=True)
class _Rows:
    """The rows of all files."""

    spool: RowSpool
    numbers: RowNumbers

    def find(self, prepared: Prepared) -> tuple[int, ForeignRow]:
        """The row of a sample and its number.

        Raises:
            SampleError: there is none.
        """
        number = self.numbers.find(prepared.sample, prepared.example)
        return number, self.spool[number]


class _Run:
    """One run over the pending shards, with its counters."""

    def __init__(
        self,
        job: ImportJob,
        preparation: Preparation,
        samples: DataSource,
        rows: _Rows,
        store: StoreWriter,
        *,
        kept: Kept,
        shift: int,
    ) -> None:
        self.job, self.preparation, self.samples, self.rows, self.store = job, preparation, samples, rows, store
        self.kept, self.shift = kept, shift
        self.written = self.shards_written = self.errors = 0
        self.used: set[int] = set()

    def write(self, shards: Iterable[int]) -> None:
        """Write the shards, each completely or not at all."""
        with PreparationThreads(
            self.preparation,
            self.job.data.images,
            NUM_THREADS,
            self.job.control.check,
            refers=self.job.inputs == "reference",
            array_bytes=0,
        ) as threads:
            for shard in shards:
                with self.store.open_shard(shard) as sink:
                    for window in threads.windows(self._windows(shard)):
                        self._take(window, sink)
                    commit = sink.commit()
                self.shards_written += 1
                self.job.control.committed(commit.shard, samples=commit.num_samples, num_bytes=commit.totals.bytes)

    def result(self, format: Format, alignment: Alignment, seconds: float) -> ImportResult:
        """The state of the store, and the part that this run wrote."""
        reader = StoreReader(self.job.store, allow_incomplete=True)
        quarantined = [(entry.index, entry.id, entry.reason) for entry in reader.quarantined]
        if not len(reader) and not self.store.pending_shards():
            raise InputError(
                f"{self.job.data.path}: none of {len(self.samples)} samples is usable, the first "
                f"({quarantined[0][1]!r}): {quarantined[0][2]}"
            )
        logits = self.store.manifest.codecs.logits
        assert logits.top_k is not None
        return ImportResult(
            format=format.name,
            match=self.rows.numbers.match,
            alignment=alignment,
            top_k=logits.top_k,
            tail="known" if logits.tail is None else "unknown",
            rows=self.rows.numbers.count,
            unused_rows=self.rows.numbers.count - len(self.used) if len(reader) == self.written else None,
            num_samples=len(self.samples),
            num_records=len(reader),
            written=self.written,
            quarantined=quarantined,
            shards_written=self.shards_written,
            seconds=seconds,
        )

    def _windows(self, shard: int) -> Iterator[PlannedWindow]:
        planned = self.store.planned_samples(shard)
        for start in range(0, len(planned), WINDOW):
            samples = [self.samples[int(index)] for index in planned[start : start + WINDOW]]
            yield PlannedWindow(shard=shard, start=start, samples=samples, is_last=start + WINDOW >= len(planned))

    def _take(self, window: Window, sink: ShardWriter) -> None:
        """Append the samples of a window in the order of the plan, or list them as unusable."""
        items: list[Prepared | Unusable] = [*window.prepared, *window.unusable]
        for item in sorted(items, key=lambda item: item.place):
            self.job.control.check()
            try:
                if isinstance(item, Unusable):
                    raise item.reason
                sink.append(self._record(item))
            except (SampleError, RecordError) as error:
                self._quarantine(item.sample, error, sink)
                continue
            self.written += 1
            self.job.control.advance(written=1, tokens=item.length)

    def _record(self, prepared: Prepared) -> Record:
        number, row = self.rows.find(prepared)
        self.used.add(number)
        chosen = supervised_rows(row, prepared.example, self.preparation.decode, shift=self.shift)
        logits = logits_of(row, chosen, prepared.example.positions.next_labels, self.kept)
        return prepared.record(embeds=self.job.inputs == "embed", logits=logits)

    def _quarantine(self, sample: Sample, error: Exception, sink: ShardWriter) -> None:
        """List an unusable sample in the store; too many end the run."""
        self.errors += 1
        self.job.control.advance(errors=1)
        if self.job.max_errors is not None and self.errors > self.job.max_errors:
            raise InputError(
                f"{self.job.data.path}: sample {sample.id!r} (index {sample.index}): {error}; {self.errors} unusable "
                f"samples, --max-errors is {self.job.max_errors}"
            ) from error
        sink.quarantine(sample.index, sample.id, str(error))


def _kept(job: ImportJob, logits: LogitsCodec, checkpoint: Checkpoint, preparation: Preparation) -> Kept:
    assert logits.top_k is not None
    config = checkpoint.config
    return Kept(
        top_k=logits.top_k,
        knows_tail=logits.tail is None,
        exponent=job.temperature,
        vocab_size=config.vocab_size,
        num_tokens=min(preparation.num_tokens, config.vocab_size) if config.pads_vocabulary else config.vocab_size,
    )


def _check_data(job: ImportJob, samples: DataSource) -> None:
    if not len(samples):
        raise InputError(f"{job.data.path}: contains no conversations; give a file with at least one")
    if samples.holds_images and job.inputs == "reference":
        raise InputError(
            f"{job.data.path}: holds the images itself, so the store must too; give --inputs embed, or leave it out"
        )
    folder = job.data.images
    if (folder is None or not folder.is_dir()) and any(_has_image_files(sample) for sample in samples):
        found = "is missing" if folder is None else f"is {tried(folder)}, which is not a folder"
        raise InputError(f"{job.data.path}: has samples with images, but --images {found}; give the image folder")


def _has_image_files(sample: Sample) -> bool:
    """Whether a sample has an image that is a file of its own."""
    return bool(sample.images) and (not sample.contents or None in sample.contents)


def _alignment(
    job: ImportJob, samples: DataSource, preparation: Preparation, rows: _Rows, *, format: Format, kept: Kept
) -> Alignment:
    """The alignment of the files, found out on samples that are spread evenly; before anything is written.

    Raises:
        InputError: as `probe`.
    """
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(PROBED, len(samples))).astype(np.int64))
    planned = PlannedWindow(shard=0, start=0, samples=[samples[int(index)] for index in chosen], is_last=True)
    with PreparationThreads(preparation, job.data.images, NUM_THREADS, job.control.check, array_bytes=0) as threads:
        (window,) = threads.windows([planned])
    if not window.prepared:
        first = window.unusable[0]
        raise InputError(
            f"{job.data.path}: none of {len(chosen)} samples is usable, the first ({first.sample.id!r}): {first.reason}"
        )
    found = probe(
        window.prepared,
        lambda prepared: rows.find(prepared)[1],
        preparation.decode,
        format=format,
        kept=kept,
        given=job.alignment,
        where=job.files[0],
    )
    if found.notice is not None:
        job.control.notice(found.notice)
    return found.alignment
