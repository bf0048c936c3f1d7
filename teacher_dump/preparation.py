"""Threads that prepare samples for the teacher one window ahead: read files, tokenise text, decode each image once.

Decoding, resizing and tokenising release Python's lock, so threads are fast enough for a teacher.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignkd.storage import Record
from alignkd.teacher_dump.array_budget import IMAGE_ARRAY_BYTES, ArrayBudget
from alignkd.vlm.data.data_list import sample_files
from alignkd.vlm.data.images import MissingImageError, image_hashes
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import ImageError, InputError, SampleError
from alignkd.vlm.inputs.examples import Example, ImageArrays, Preparation
from alignkd.vlm.inputs.sample_key import sample_key

TICK_SECONDS = 0.5


class DoesNotFitError(SampleError):
    """A sample that does not fit the device, even alone."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A sample ready for the teacher.

    Attributes:
        place: position in the shard's plan.
        sample: the data set's entry.
        example: tokens and positions, without the images' arrays.
        images: the arrays of each image, for the vision tower; empty after the forward pass, and where the array budget
            is used up (`PreparationThreads.batches` makes them again).
        key: content hash of the sample.
        image_files: the bytes of each image file.
        image_hashes: sha256 of each image file.
    """

    place: int
    sample: Sample
    example: Example
    images: tuple[ImageArrays, ...]
    key: str
    image_files: tuple[bytes, ...]
    image_hashes: tuple[str, ...]

    @property
    def length(self) -> int:
        """Embedded tokens."""
        return self.example.positions.length

    @property
    def array_bytes(self) -> int:
        """Bytes of the images' arrays."""
        return sum(values.nbytes for arrays in self.images for values in arrays.values())

    @property
    def lacks_images(self) -> bool:
        """Whether the sample has images, and their arrays were dropped."""
        return bool(self.image_files) and not self.images

    def record(self, *, embeds: bool, **targets: Any) -> Record:
        """The record of the sample.

        Args:
            embeds: whether it holds the image files.
            targets: fields of `Record` for the targets.

        Raises:
            RecordError: a target does not fit the sample, or is not finite.
        """
        positions = self.example.positions
        return Record(
            key=self.key,
            id=self.sample.id,
            index=self.sample.index,
            conversations=self.sample.conversations(),
            images=self.sample.images,
            image_sha256=self.image_hashes,
            image_bytes=self.image_files if embeds else (),
            input_ids=self.example.input_ids,
            labels=self.example.labels,
            tokens_of_image=positions.tokens_of_image,
            vision_positions=positions.vision_positions,
            tqv_query_positions=positions.tqv_query_positions,
            supervised_positions=positions.supervised_positions,
            **targets,
        )

    def without_images(self) -> "Prepared":
        """A copy without the images' arrays, enough to make the record."""
        return replace(self, images=())


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """An unusable sample, and why."""

    place: int
    sample: Sample
    reason: SampleError


@dataclass(frozen=True, kw_only=True)
class PlannedWindow:
    """Consecutive samples of one shard.

    Attributes:
        shard: number of the shard.
        start: position of the first sample in the shard's plan; 0 starts a shard.
        samples: samples in the order of the plan.
        is_last: whether this is the last window of the shard.
    """

    shard: int
    start: int
    samples: Sequence[Sample]
    is_last: bool


@dataclass(frozen=True, kw_only=True)
class Window:
    """A planned window whose samples are prepared."""

    plan: PlannedWindow
    prepared: list[Prepared]
    unusable: list[Unusable]


class PreparationThreads:
    """Threads that prepare samples; a context manager.

    Args:
        preparation: tokenizer, template and image processor of the teacher.
        folders: the folders of image paths, or the only one.
        num_threads: number of threads.
        waiting: called about every `TICK_SECONDS` while waiting for samples; may raise.
        refers: the store names image files and does not hold them: a sample whose data file holds an image is
            unusable, because training could not read it.
        questions: prepare prompts that end where an answer begins, in place of training examples.
        array_bytes: bytes of image arrays that the samples of windows hold at most, see `array_budget`.
    """

    def __init__(
        self,
        preparation: Preparation,
        folders: Path | Iterable[Path] | None,
        num_threads: int,
        waiting: Callable[[], object] = lambda: None,
        *,
        refers: bool = False,
        questions: bool = False,
        array_bytes: int = IMAGE_ARRAY_BYTES,
    ) -> None:
        self._preparation, self._waiting, self._refers = preparation, waiting, refers
        self._questions = questions
        given = [folders] if isinstance(folders, Path) else folders or ()
        self._folder_ids = {folder: _inode(folder) for folder in given}
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare")
        # arrays that were dropped do not wait for the samples of the next window
        self._again = ThreadPoolExecutor(num_threads, thread_name_prefix="prepare-again")
        self.budget = ArrayBudget(array_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # running tasks are not needed and may be stuck in a read
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._again.shutdown(wait=False, cancel_futures=True)

    def windows(self, plans: Iterable[PlannedWindow]) -> Iterator[Window]:
        """Yield each window while the next one is being prepared."""
        started: list[tuple[PlannedWindow, list[Future[list[Prepared | Unusable]]]]] = []
        for plan in plans:
            started.append((plan, self._start(plan.samples, plan.start, self.budget)))
            if len(started) == 2:
                yield self._finished(*started.pop(0))
        for plan, futures in started:
            yield self._finished(plan, futures)

    def batches(self, prepared: list[Prepared], buckets: Iterable[Sequence[int]]) -> Iterator[list[Prepared]]:
        """The samples of each bucket of a window, with their image arrays.

        Arrays that were dropped are made again, one bucket ahead. The samples in `prepared` lose theirs.
        """
        ahead: list[list[Prepared | Future[Prepared]]] = []
        for bucket in buckets:
            samples = [prepared[number] for number in bucket]
            for number in bucket:
                prepared[number] = prepared[number].without_images()
            ahead.append([
                self._again.submit(self._with_images, sample) if sample.lacks_images else sample for sample in samples
            ])  # fmt: skip
            if len(ahead) == 2:
                yield from self._batch(ahead.pop(0))
        for batch in ahead:
            yield from self._batch(batch)

    def _batch(self, samples: list[Prepared | Future[Prepared]]) -> Iterator[list[Prepared]]:
        """One batch; its bytes count as given back afterwards."""
        held = sum(sample.array_bytes for sample in samples if isinstance(sample, Prepared))
        self._wait(sample for sample in samples if isinstance(sample, Future))
        yield [sample if isinstance(sample, Prepared) else sample.result() for sample in samples]
        self.budget.give(held)

    def _with_images(self, sample: Prepared) -> Prepared:
        return replace(sample, images=self._build(self._preparation, sample.sample.turns, sample.image_files).images)

    def prepare(self, samples: Sequence[Sample]) -> list[Prepared]:
        """Prepare some samples now; unusable ones are left out."""
        return self.window(samples, budgeted=False).prepared

    def window(self, samples: Sequence[Sample], *, budgeted: bool = True) -> Window:
        """Prepare some samples now.

        Args:
            budgeted: drop image arrays beyond the budget, for `batches`.
        """
        plan = PlannedWindow(shard=0, start=0, samples=samples, is_last=True)
        return self._finished(plan, self._start(samples, 0, self.budget if budgeted else None))

    def with_images_of(self, samples: Sequence[Prepared], others: Sequence[Prepared]) -> list[Prepared | None]:
        """Each sample with the images of another, prepared again: another image may have other vision tokens.

        None where that is unusable, for example too long.
        """
        futures = [self._pool.submit(self._exchanged, *pair) for pair in zip(samples, others, strict=True)]
        self._wait(futures)
        return [future.result() for future in futures]

    def _exchanged(self, sample: Prepared, other: Prepared) -> Prepared | None:
        try:
            example = self._build(self._preparation, sample.sample.turns, other.image_files)
        except SampleError:
            return None
        return replace(
            sample,
            example=replace(example, images=()),
            images=example.images,
            image_files=other.image_files,
            image_hashes=other.image_hashes,
        )

    def _finished(self, plan: PlannedWindow, futures: Sequence[Future[list[Prepared | Unusable]]]) -> Window:
        self._wait(futures)
        items = sorted((item for future in futures for item in future.result()), key=lambda item: item.place)
        return Window(
            plan=plan,
            prepared=[item for item in items if isinstance(item, Prepared)],
            unusable=[item for item in items if isinstance(item, Unusable)],
        )

    def _wait(self, futures: Iterable[Future[Any]]) -> None:
        for future in futures:
            while not wait([future], timeout=TICK_SECONDS).done:
                self._waiting()

    def _start(
        self, samples: Sequence[Sample], start: int, budget: ArrayBudget | None = None
    ) -> list[Future[list[Prepared | Unusable]]]:
        """Start one task per distinct image, so that each is read and decoded once."""
        tasks: defaultdict[object, list[tuple[int, Sample]]] = defaultdict(list)
        for place, sample in enumerate(samples, start):
            tasks[(sample.folder, sample.images, sample.contents) if sample.images else place].append((place, sample))
        return [self._pool.submit(self._prepare, members, budget) for members in tasks.values()]

    def _prepare(self, members: Sequence[tuple[int, Sample]], budget: ArrayBudget | None) -> list[Prepared | Unusable]:
        preparation = self._preparation.caching_images()
        found: list[Prepared | Unusable] = []
        for place, sample in members:
            try:
                one = self._prepared(place, sample, preparation)
                holds = budget is None or budget.take(one.array_bytes)
                found.append(one if holds else one.without_images())
            except SampleError as error:
                found.append(Unusable(place=place, sample=sample, reason=error))
        return found

    def _prepared(self, place: int, sample: Sample, preparation: Preparation) -> Prepared:
        if sample.problem is not None:
            raise SampleError(sample.problem)
        if self._refers and any(content is not None for content in sample.contents):
            raise SampleError(
                "the data file holds an image of the sample, but the store only refers to image files; set store.inputs"
                " to embed and dump into another store"
            )
        try:
            files = sample_files(sample)
        except MissingImageError:
            self._check_image_folder(sample.folder)
            raise
        try:
            example = self._build(preparation, sample.turns, files)
        except ImageError as error:
            raise ImageError(f"{' and '.join(sample.images)}: {error}") from error
        hashes = image_hashes(files)
        return Prepared(
            place=place,
            sample=sample,
            example=replace(example, images=()),
            images=example.images,
            key=sample_key(sample.conversations(), hashes, preparation.template_fingerprint),
            image_files=files,
            image_hashes=hashes,
        )

    def _build(self, preparation: Preparation, turns: Sequence[Turn], files: Sequence[bytes]) -> Example:
        return preparation.build_question(turns, files) if self._questions else preparation.build(turns, files)

    def _check_image_folder(self, folder: Path | None) -> None:
        """Check the image folder before a file is reported missing: an unmounted folder lacks all files.

        Raises:
            InputError: the folder can no longer be read, or has been replaced.
        """
        if folder is not None and folder in self._folder_ids and (found := _inode(folder)) != self._folder_ids[folder]:
            raise InputError(
                f"data.images {folder}: {'cannot be read' if found is None else 'is another folder'} since the "
                "dump started, so no file can be reported missing; mount it again and rerun the command"
            )


def _inode(folder: Path) -> int | None:
    """Inode of a readable folder, else None; a mount point and the mounted folder have different inodes."""
    try:
        os.scandir(folder).close()
        return folder.stat().st_ino
    except OSError:
        return None
