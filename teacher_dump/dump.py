"""The teacher pass: plan, batch, forward, capture, encode, append, commit."""

import hashlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from storage.commits import CommitRecord
from storage.errors import RecordError
from storage.reader import StoreReader
from storage.record import Record
from storage.writer import ShardWriter, StoreWriter
from teacher_dump.attachments import make_attachments
from teacher_dump.capture import Targets, capture
from teacher_dump.distribution import stored_logits
from teacher_dump.fingerprint import make_manifest
from teacher_dump.job import DumpJob, DumpResult
from teacher_dump.records import make_record
from vlm.checkpoint import load_example_builder, load_model
from vlm.conversations import ConversationFile, Sample, read_image_bytes, sample_key
from vlm.errors import ImageError, InputError, SampleError
from vlm.examples import Example, ExampleBuilder
from vlm.model import MobileVLM


@dataclass(frozen=True)
class Prepared:
    """A sample ready for the teacher."""

    sample: Sample
    image_bytes: bytes | None
    example: Example


def dump(job: DumpJob) -> DumpResult:
    """Write every shard of the plan that is not committed yet.

    Raises:
        InputError: unusable data or checkpoint, or too many unusable samples.
        StoreError: the store was made with other settings, or cannot be written.
    """
    started = time.monotonic()
    samples = ConversationFile(job.conversations)
    if not len(samples):
        raise InputError(f"{job.conversations}: no conversations in it; give a file with at least one")
    _check_image_folder(job, samples)
    teacher = job.teacher
    builder = load_example_builder(
        teacher.checkpoint, template=job.template, vision_config=teacher.vision_config, max_tokens=job.max_tokens
    )
    # Shapes come from the model itself, so that the manifest cannot say anything else.
    model = load_model(
        teacher.checkpoint,
        vision_config=teacher.vision_config,
        dtype=teacher.torch_dtype,
        device=teacher.torch_device,
        quantization=teacher.quantization,
    )
    store = _open_store(job, model, builder, samples)
    pending = store.pending_shards()
    run = _Run(job, model, builder, samples, total=sum(len(store.planned_samples(shard)) for shard in pending))
    for shard in pending:
        run.write_shard(store, shard)
    return _result(job, run, len(samples), len(pending), time.monotonic() - started)


class _Run:
    """One run over the pending shards: what it needs and what it counts."""

    def __init__(
        self, job: DumpJob, model: MobileVLM, builder: ExampleBuilder, samples: ConversationFile, total: int
    ) -> None:
        self.job, self.model, self.builder, self.samples = job, model, builder, samples
        self.total, self.done, self.written, self.errors = total, 0, 0, 0

    def write_shard(self, store: StoreWriter, shard: int) -> CommitRecord:
        """One shard, whole or not at all."""
        with store.open_shard(shard) as sink:
            planned = [self.samples[index] for index in store.planned_samples(shard)]
            for batch in batched(self.prepare(planned, sink), self.job.teacher.batch):
                targets = capture(self.model, [item.example for item in batch], self.job.store.attention_pairs)
                for item, sample_targets in zip(batch, targets, strict=True):
                    with _Quarantine(self, sink, item.sample):
                        self.append(sink, self.record(item, sample_targets))
                self.job.progress(self.done, self.total)
            return sink.commit()

    def record(self, item: Prepared, targets: Targets) -> Record:
        sample, config = item.sample, self.job.store
        sha256 = None if item.image_bytes is None else hashlib.sha256(item.image_bytes).hexdigest()
        logits = stored_logits(
            self.model.lm_head,
            targets.hidden_ND,
            targets.next_labels_N,
            config.logits.codec(),
            draw_key=(config.seed, sample.index),
        )
        return make_record(
            sample,
            item.example,
            targets,
            logits,
            config,
            key=sample_key(sample.conversations(), sha256, self.job.template),
            image_sha256=sha256,
            image_bytes=item.image_bytes,
        )

    def append(self, sink: ShardWriter, record: Record) -> None:
        sink.append(record)
        self.done += 1
        self.written += 1

    def prepare(self, planned: list[Sample], sink: ShardWriter) -> Iterator[Prepared]:
        """Tokens and pixels of each usable sample; the others are quarantined."""
        for sample in planned:
            with _Quarantine(self, sink, sample):
                if sample.problem is not None:
                    raise SampleError(sample.problem)
                image_bytes = self.image_bytes(sample)
                yield Prepared(sample, image_bytes, self.build(sample, image_bytes))

    def build(self, sample: Sample, image_bytes: bytes | None) -> Example:
        try:
            return self.builder.build(sample.turns, image_bytes)
        except ImageError as error:
            raise ImageError(f"{sample.image}: {error}") from error

    def image_bytes(self, sample: Sample) -> bytes | None:
        if sample.image is None:
            return None
        assert self.job.images is not None  # _check_image_folder
        return read_image_bytes(self.job.images, sample.image)


class _Quarantine:
    """Context of one sample: an unusable sample is listed in the store, or stops the run if so configured."""

    def __init__(self, run: _Run, sink: ShardWriter, sample: Sample) -> None:
        self.run, self.sink, self.sample = run, sink, sample

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, SampleError | RecordError):
            return False
        config, sample = self.run.job.store, self.sample
        where = f"{self.run.job.conversations}: sample {sample.id!r} (index {sample.index}): {error}"
        if config.on_error == "stop":
            raise InputError(f"{where} (store.on_error is 'stop')") from error
        self.run.errors += 1
        self.run.done += 1
        if config.max_errors is not None and self.run.errors > config.max_errors:
            raise InputError(
                f"{where}; {self.run.errors} unusable samples, store.max_errors is {config.max_errors}; mend the data"
            ) from error
        self.sink.quarantine(sample.index, sample.id, str(error))
        return True


def _open_store(job: DumpJob, model: MobileVLM, builder: ExampleBuilder, samples: ConversationFile) -> StoreWriter:
    attachments = make_attachments(job.store, builder, model)
    manifest = make_manifest(job, model.config, builder, samples, attachments)
    return StoreWriter(job.store.path, manifest, attachments=attachments)


def _check_image_folder(job: DumpJob, samples: ConversationFile) -> None:
    if (job.images is None or not job.images.is_dir()) and any(sample.image for sample in samples):
        found = "is missing" if job.images is None else f"is {job.images}, which is no folder"
        raise InputError(f"{job.conversations}: has samples with images, but data.images {found}; set data.images")


def batched(items: Iterator[Prepared], size: int) -> Iterator[list[Prepared]]:
    """Consecutive lists of at most `size` items."""
    while batch := list(itertools.islice(items, size)):
        yield batch


def _result(job: DumpJob, run: _Run, num_samples: int, shards_written: int, seconds: float) -> DumpResult:
    store = StoreReader(job.store.path)
    quarantined = [(entry.index, entry.id, entry.reason) for entry in store.quarantined]
    if not len(store):
        _, sample_id, reason = quarantined[0]
        raise InputError(
            f"{job.conversations}: none of {num_samples} samples is usable, the first ({sample_id!r}): {reason}"
        )
    return DumpResult(
        num_samples=num_samples,
        num_records=len(store),
        written=run.written,
        quarantined=quarantined,
        shards_written=shards_written,
        seconds=seconds,
    )
