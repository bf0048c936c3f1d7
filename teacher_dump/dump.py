"""The teacher pass: plan, prepare, batch, forward, capture, append, commit, all in parallel.

Threads of `Preparation` work one window ahead, the main thread feeds the device, and `ShardThread` writes the results.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from alignkd.storage.errors import StoreError
from alignkd.storage.files.location import check_location
from alignkd.storage.places import load_manifest
from alignkd.storage.schema.manifest import Manifest
from alignkd.storage.schema.targets.sequence import has_sequence_logprob
from alignkd.storage.write.store import StoreWriter, open_writer
from alignkd.teacher_dump.attachments import make_attachments, remarks_on_stem
from alignkd.teacher_dump.bucketing import least_work_buckets
from alignkd.teacher_dump.data_parts import continued_list, image_folders_of, whole_list
from alignkd.teacher_dump.fingerprint import make_manifest
from alignkd.teacher_dump.job import DumpJob, DumpResult, stored_result
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.operation.retry import shards_to_retry
from alignkd.teacher_dump.operation.shard_thread import Done, Finished, Outcome, ShardThread
from alignkd.teacher_dump.operation.unusable import does_not_fit
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads, Window
from alignkd.teacher_dump.sanity import check_teacher
from alignkd.teacher_dump.sanity_report import SanityFinding
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.targets.capture import Capture
from alignkd.teacher_dump.teacher import load_teacher
from alignkd.vlm.data.data_list import DataList, check_image_folders
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import VisionLanguageModel
from alignkd.vlm.hardware.memory_faults import memory_errors
from alignkd.vlm.inputs.examples import Preparation


def dump(job: DumpJob, model: VisionLanguageModel | None = None) -> DumpResult:
    """Write the shards of the plan that are not committed yet and that `job.control` assigns.

    With `job.retry_unusable`, committed shards with samples that have become usable are written again.

    Args:
        model: the teacher of `job`, if already loaded.

    Raises:
        InputError: unusable data, checkpoint or teacher, too many unusable samples, or out of memory.
        StoreError: the store has other settings, or cannot be written.
        TypeError: `job` is not a DumpJob.
    """
    if not isinstance(job, DumpJob):
        raise TypeError(f"job is {job!r:.60}, expected a DumpJob; alignkd.dump_job makes one from a file or keywords")
    teacher = job.teacher
    with memory_errors(
        f"free memory, lower teacher.token_budget (now {teacher.token_budget}), teacher.batch or teacher.window, or "
        f"set teacher.quantization (now {teacher.quantization}); `alignkd plan CONFIG` shows what fits"
    ):
        return _dump(job, model)


def _dump(job: DumpJob, model: VisionLanguageModel | None) -> DumpResult:
    started = time.monotonic()
    check_location(job.store.path, writing=True)
    samples = DataList(job.data, progress=job.control.reading)
    stored = _stored(job)
    job = replace(job, store=_with_inputs(job, samples, stored))
    check_image_folders(samples, job.data)
    teacher = job.open_teacher()
    preparation = teacher.preparation(job.template, max_tokens=job.max_tokens)
    for warning in preparation.warnings():
        job.control.notice(warning)
    for remark in remarks_on_stem(job, teacher):
        job.control.notice(remark)
    attachments = make_attachments(job, teacher)
    data = None if stored is None else continued_list(job.store.path, stored, samples, job.data)
    data = data or whole_list(samples, job.data)
    folders = image_folders_of(samples, job.data)
    manifest = make_manifest(job, teacher, preparation, data, attachments, stored, folders)
    # a checkpoint that cannot be loaded must not leave a new store behind; a finished store needs no teacher
    if model is None and stored is None:
        model = load_teacher(job, teacher)
    store = open_writer(job.store.path, manifest, attachments=attachments)
    if stored is not None and data.added:
        job.control.notice(f"{data.added:,} sample{'' if data.added == 1 else 's'} added to {stored.num_samples:,}")
    del attachments  # hundreds of megabytes if they include a stem or lm_head
    run = _Run(job, preparation, samples, store)
    if job.retry_unusable:
        run.retry()
    with job.control.over(store) as shards:
        if store.pending_shards():
            run.write(model or load_teacher(job, teacher), shards)
    return run.result(time.monotonic() - started)


def _with_inputs(job: DumpJob, samples: DataList, stored: Manifest | None) -> StoreConfig:
    """The settings of the store with `inputs`; where the user leaves it open, a store that exists decides.

    Raises:
        InputError: the store refers to image files, but the data hold images.
    """
    config = job.store
    where = next((source.data.path for source in samples.sources if source.holds_images), None)
    if config.inputs is None and stored is not None:
        if where is not None and stored.inputs == "reference":
            raise InputError(
                f"{where}: holds the images itself, but store {config.path} only refers to image files (inputs: "
                "reference); choose another path"
            )
        config = config.model_copy(update={"inputs": stored.inputs})
    return config.with_inputs(holds_images=where is not None, where=where or samples.path)


class _Run:
    """One run over the assigned shards, with its counters."""

    def __init__(self, job: DumpJob, preparation: Preparation, samples: DataList, store: StoreWriter) -> None:
        self.job, self.preparation, self.samples, self.store = job, preparation, samples, store
        self.written = self.shards_written = self.halved = 0
        self.sanity: tuple[SanityFinding, ...] = ()

    def write(self, model: VisionLanguageModel, shards: Iterable[int]) -> None:
        """Write the shards, each completely or not at all."""
        job = self.job
        manifest = self.store.manifest
        capture = Capture(
            model,
            job.store,
            num_tokens=manifest.shapes.num_tokens,
            sequence_logprob=has_sequence_logprob(manifest),
        )
        with (
            self._threads() as threads,
            ShardThread(job.store, self.samples.where, self._note) as writer,
        ):
            self._check_teacher(model, threads)
            self._write_known(capture, threads, writer, shards)
            while job.control.waits_for_more():
                writer.tick()
                self._write_known(capture, threads, writer, shards)
            writer.finish()

    def _write_known(
        self, capture: Capture, threads: PreparationThreads, writer: ShardThread, shards: Iterable[int]
    ) -> None:
        """Hand the samples of the shards that are known now to `writer`, which commits them."""
        for window in threads.windows(self._windows(shards)):
            if window.plan.start == 0:
                # shards are requested one window ahead; after a stop request, do not start the next
                if self.job.control.stops.finishing:
                    return
                writer.begin(self.store.open_shard(window.plan.shard))
            if window.unusable:
                writer.put(list(window.unusable))
            for outcomes in self._batches(capture, window, threads):
                writer.put(outcomes)
            if window.plan.is_last:
                writer.commit()

    def retry(self) -> None:
        """Mark shards as pending if samples that they list as unusable can be prepared now."""
        job = self.job
        with self._threads() as threads:
            found = list(shards_to_retry(self.store, self.samples, threads.prepare))
        usable = sum(count for _, _, count in found)
        shards = [shard for shard, _, count in found if count]
        job.control.notice(
            f"unusable samples that can be prepared now: {usable} of {sum(listed for _, listed, _ in found)}; "
            f"committed shards that are written again: {len(shards)}"
        )
        self.store.redo(shards)

    def result(self, seconds: float) -> DumpResult:
        """The state of the store, and the part that this run wrote."""
        return stored_result(
            self.job.store.path,
            data=self.samples.path,
            num_samples=len(self.samples),
            is_complete=not self.store.pending_shards(),
            written=self.written,
            shards_written=self.shards_written,
            seconds=seconds,
            halved_batches=self.halved,
            sanity=self.sanity,
        )

    def _threads(self) -> PreparationThreads:
        job = self.job
        folders = [data.images for data in job.data if data.images is not None]
        return PreparationThreads(
            self.preparation,
            folders,
            job.teacher.data_workers,
            job.control.check,
            refers=self.store.manifest.inputs == "reference",
        )

    def _windows(self, shards: Iterable[int]) -> Iterator[PlannedWindow]:
        size = self.job.teacher.window
        for shard in shards:
            planned = self.store.planned_samples(shard)
            for start in range(0, len(planned), size):
                samples = [self.samples[index] for index in planned[start : start + size]]
                is_last = start + size >= len(planned)
                yield PlannedWindow(shard=shard, start=start, samples=samples, is_last=is_last)

    def _batches(self, capture: Capture, window: Window, threads: PreparationThreads) -> Iterator[list[Outcome]]:
        """The window's samples with their targets, batch by batch."""
        teacher, prepared = self.job.teacher, window.prepared
        capture.begin_window(prepared)
        lengths = [sample.length for sample in prepared]
        buckets = least_work_buckets(lengths, token_budget=teacher.token_budget, max_samples=teacher.batch)
        for batch in threads.batches(prepared, buckets):
            for part, captured in in_halves(capture, batch, self._halve):
                if captured is None:
                    yield [does_not_fit(part[0], capture.model.device)]
                    continue
                yield [
                    Finished(prepared=sample.without_images(), captured=targets)
                    for sample, targets in zip(part, captured, strict=True)
                ]

    def _check_teacher(self, model: VisionLanguageModel, threads: PreparationThreads) -> None:
        """Check the teacher before the first shard of a store."""
        pending, mode = self.store.pending_shards(), self.job.teacher.sanity
        if mode == "off" or len(pending) < self.store.manifest.num_shards:
            return
        planned = (self.samples[index] for shard in pending for index in self.store.planned_samples(shard))
        self.sanity = tuple(check_teacher(model, planned, threads, self.job))

    def _note(self, done: Done) -> None:
        """Report progress and stop if requested; called often, in the main thread."""
        control = self.job.control
        self.written += done.written
        if done.written or done.errors:
            control.advance(written=done.written, errors=done.errors, tokens=done.tokens)
        for commit in done.commits:
            self.shards_written += 1
            control.committed(commit.shard, samples=commit.num_samples, num_bytes=commit.totals.bytes)
        control.check()

    def _halve(self) -> None:
        self.halved += 1
        self.job.control.advance(halved=1)
        if self.halved == 1:
            self.job.control.notice(
                "a batch did not fit the device's memory and was halved; lower teacher.token_budget "
                f"(now {self.job.teacher.token_budget}) if that happens often"
            )


def _stored(job: DumpJob) -> Manifest | None:
    """The manifest of the store if there is one; other problems are reported on open."""
    try:
        return load_manifest(job.store.path)
    except StoreError:
        return None
