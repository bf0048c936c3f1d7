"""The teacher answers the questions of data sets: plan, prepare, generate, write, shard by shard.

Threads prepare the first prompts of a window while the teacher answers those of the window before.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from alignkd.teacher_dump.data_parts import whole_list
from alignkd.teacher_dump.generate.answering import Answering
from alignkd.teacher_dump.generate.conversation import Conversation
from alignkd.teacher_dump.generate.folder import VERSION, AnswerFolder, ShardReport, UnusableSample
from alignkd.teacher_dump.generate.images import ImageRoot, check_images_are_files
from alignkd.teacher_dump.generate.job import GenerateJob, GenerateResult
from alignkd.teacher_dump.operation.retry import with_advice
from alignkd.teacher_dump.operation.shard_thread import RETRYABLE
from alignkd.teacher_dump.operation.unusable import why_none
from alignkd.teacher_dump.preparation import PlannedWindow, PreparationThreads
from alignkd.teacher_dump.teacher import load_teacher, open_teacher
from alignkd.vlm.data.data_list import DataList, check_image_folders
from alignkd.vlm.data.written_entry import written_entry
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.hardware.memory_faults import memory_errors
from alignkd.vlm.inputs.examples import Preparation

RETRY = "alignkd generate CONFIG --retry-unusable"


def generate_answers(job: GenerateJob, model: VisionLanguageModel | None = None) -> GenerateResult:
    """Write the shards of answers that are not written yet and that `job.control` assigns.

    With `job.retry_unusable`, shards with samples that have become usable are written again.

    Args:
        model: the teacher of `job`, if already loaded.

    Raises:
        InputError: unusable data, checkpoint or teacher, a folder of other answers, too many unusable samples, or out
            of memory.
        StoreError: the folder cannot be written.
    """
    teacher = job.teacher
    with memory_errors(
        f"free memory, lower teacher.token_budget (now {teacher.token_budget}), teacher.batch or teacher.window, or "
        f"set teacher.quantization (now {teacher.quantization})"
    ):
        return _generate(job, model)


def _generate(job: GenerateJob, model: VisionLanguageModel | None) -> GenerateResult:
    started = time.monotonic()
    job = _with_usable_kernels(job)
    samples = DataList(job.data, progress=job.control.reading)
    check_images_are_files(samples)
    check_image_folders(samples, job.data)
    teacher = open_teacher(job.teacher)
    preparation = teacher.preparation(job.template, max_tokens=job.max_tokens)
    for warning in preparation.warnings():
        job.control.notice(warning)
    root = ImageRoot.of(job.data)
    generation = _generation(job, samples, teacher, preparation, root)
    # a checkpoint that cannot be loaded must not leave a new folder behind
    if model is None and not job.generate.output.exists():
        model = load_teacher(job, teacher)
    folder = AnswerFolder.open(job.generate.output, generation)
    run = _Run(job, preparation, samples, folder, root)
    if job.retry_unusable:
        run.retry()
    with job.control.over(folder) as shards:
        if folder.pending_shards():
            run.write(model or load_teacher(job, teacher), shards)
    return run.result(time.monotonic() - started)


def _with_usable_kernels(job: GenerateJob) -> GenerateJob:
    """The job without compiled layers: with a cache of keys and values each layer would be compiled on its own."""
    if job.teacher.kernels != "compile":
        return job
    job.control.notice("kernels compile: layers are not compiled for generating; torch's kernels are used")
    return replace(job, teacher=job.teacher.model_copy(update={"kernels": "torch"}))


def _generation(
    job: GenerateJob, samples: DataList, teacher: Checkpoint, preparation: Preparation, root: ImageRoot
) -> dict[str, Any]:
    """Content of `generation.json`: all that decides the answers."""
    parts = whole_list(samples, job.data)
    sources = parts.fields["sources"] or ()
    return {
        "version": VERSION,
        "teacher": {
            "name": job.teacher.checkpoint,
            "fingerprint": {
                **preparation.fingerprint,
                "weights": teacher.fingerprint,
                **teacher.settings_fingerprint,
                "dtype": job.teacher.precision,
            },
        },
        "settings": {**job.generate.deciding(), "max_tokens": job.max_tokens},
        "data": {
            **parts.fingerprint,
            "sources": [source.model_dump(mode="json", exclude_none=True) for source in sources],
            "answers": [data.answers for data in job.data],
        },
        "images": None if root.folder is None else str(root.folder),
        "num_samples": len(samples),
        "shard_size": job.generate.shard_size,
        "created_with": {"torch": torch.__version__, "transformers": version("transformers")},
    }


class _Run:
    """One run over the assigned shards, with its counters."""

    def __init__(
        self, job: GenerateJob, preparation: Preparation, samples: DataList, folder: AnswerFolder, root: ImageRoot
    ) -> None:
        self.job, self.preparation, self.samples, self.folder, self.root = job, preparation, samples, folder, root
        self.shards_written = self.halved = self.num_errors = 0
        # the conversations of windows that are being prepared
        self._ahead: deque[list[Conversation]] = deque()

    def write(self, model: VisionLanguageModel, shards: Iterable[int]) -> None:
        """Write the shards, each completely or not at all."""
        job = self.job
        with self._threads() as threads:
            answering = Answering(job, model, self.preparation, threads, self._halve)
            of_shard: list[Conversation] = []
            for window in threads.windows(self._windows(shards)):
                if window.plan.start == 0:
                    if job.control.stops.finishing:  # the shard was requested one window ahead
                        break
                    of_shard = []
                conversations = self._ahead.popleft()
                of_shard += conversations
                self._note([conversation for conversation in conversations if not conversation.asks])
                for ended in answering.ended([one for one in conversations if one.asks], window):
                    self._note(ended)
                if window.plan.is_last:
                    self._commit(window.plan.shard, of_shard)

    def retry(self) -> None:
        """Take shards as not written if samples that they list as unusable can be prepared now."""
        listed = usable = 0
        redone = []
        with self._threads() as threads:
            for report in self.folder.reports():
                indices = dict.fromkeys(one.index for one in report.unusable if RETRY in one.reason)
                begun = [Conversation.begin(self.samples[i], 0, self.job.generate.answers) for i in indices]
                prompts = [conversation.prompt() for conversation in begun if conversation.asks]
                found = len(threads.prepare(prompts))
                listed, usable = listed + len(indices), usable + found
                redone += [report.shard] if found else []
        self.job.control.notice(
            f"unusable samples that can be prepared now: {usable} of {listed}; shards that are written again: "
            f"{len(redone)}"
        )
        for shard in redone:
            self.folder.redo(shard)

    def _threads(self) -> PreparationThreads:
        folders = [data.images for data in self.job.data if data.images is not None]
        workers = self.job.teacher.data_workers
        return PreparationThreads(self.preparation, folders, workers, self.job.control.check, questions=True)

    def result(self, seconds: float) -> GenerateResult:
        """The state of the folder, and the part that this run wrote."""
        reports = list(self.folder.reports())
        unusable = [(one.index, one.id, one.reason) for report in reports for one in report.unusable]
        left = self.folder.num_shards - len(reports)
        entries = sum(report.entries for report in reports)
        if not left and not entries:
            raise InputError(
                f"{self.samples.path}: none of {len(self.samples)} samples is usable, {why_none(unusable)}"
            )
        return GenerateResult(
            num_samples=len(self.samples),
            entries=entries,
            answers=sum(report.answers for report in reports),
            finished=sum(report.finished for report in reports),
            tokens=sum(report.tokens for report in reports),
            logprob=sum(report.logprob for report in reports),
            unusable=unusable,
            retryable=sum(RETRY in reason for _, _, reason in unusable),
            shards_written=self.shards_written,
            shards_left=left,
            images=None if self.root.folder is None else str(self.root.folder),
            seconds=seconds,
            halved_batches=self.halved,
        )

    def _windows(self, shards: Iterable[int]) -> Iterator[PlannedWindow]:
        size = self.job.teacher.window
        for shard in shards:
            planned = self.folder.planned_samples(shard)
            for start in range(0, len(planned), size):
                conversations = [
                    Conversation.begin(self.samples[index], entry, self.job.generate.answers)
                    for index, entry in planned[start : start + size]
                ]
                self._ahead.append(conversations)
                prompts = [conversation.prompt() for conversation in conversations if conversation.asks]
                is_last = start + size >= len(planned)
                yield PlannedWindow(shard=shard, start=start, samples=prompts, is_last=is_last)

    def _note(self, ended: Sequence[Conversation]) -> None:
        """Report conversations that have ended, and stop if requested or if too many are unusable."""
        control = self.job.control
        unusable = [conversation for conversation in ended if conversation.reason is not None]
        if ended:
            control.advance(written=len(ended) - len(unusable), errors=len(unusable), tokens=sum(map(_tokens, ended)))
        for conversation in unusable:
            self._check_errors(conversation)
        control.check()

    def _check_errors(self, conversation: Conversation) -> None:
        settings, sample = self.job.generate, conversation.sample
        where = (
            f"{self.samples.where(sample.index)}: sample {sample.id!r} (index {sample.index}): {conversation.reason}"
        )
        if settings.on_error == "stop":
            raise InputError(f"{where} (generate.on_error is 'stop')")
        self.num_errors += 1
        if settings.max_errors is not None and self.num_errors > settings.max_errors:
            raise InputError(
                f"{where}; {self.num_errors} unusable samples, generate.max_errors is {settings.max_errors}; repair "
                "the data"
            )

    def _commit(self, shard: int, conversations: Sequence[Conversation]) -> None:
        usable = [conversation for conversation in conversations if conversation.reason is None]
        written = [generated for one in usable for generated in one.written]
        report = ShardReport(
            shard=shard,
            entries=len(usable),
            answers=len(written),
            finished=sum(bool(generated.finished) for generated in written),
            tokens=sum(generated.tokens or 0 for generated in written),
            logprob=sum(generated.logprob or 0.0 for generated in written),
            bytes=0,
            unusable=[
                UnusableSample(index=one.sample.index, id=one.sample.id, reason=_listed(one.reason))
                for one in conversations
                if one.reason is not None
            ],
        )
        report = self.folder.write([self._entry(conversation) for conversation in usable], report)
        self.shards_written += 1
        self.job.control.committed(shard, samples=len(conversations), num_bytes=report.bytes)

    def _entry(self, conversation: Conversation) -> dict[str, Any]:
        several = self.job.generate.samples_per_question > 1
        return written_entry(conversation.finished(number_id=several), self.root.names(conversation.sample), "llava")

    def _halve(self) -> None:
        self.halved += 1
        self.job.control.advance(halved=1)
        if self.halved == 1:
            self.job.control.notice(
                "a batch did not fit the device's memory and was halved; lower teacher.token_budget "
                f"(now {self.job.teacher.token_budget}) if that happens often"
            )


def _tokens(conversation: Conversation) -> int:
    return sum(generated.tokens or 0 for generated in conversation.written)


def _listed(reason: SampleError) -> str:
    return with_advice(str(reason), RETRY) if isinstance(reason, RETRYABLE) else str(reason)
