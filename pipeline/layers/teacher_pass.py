"""One pass of the teacher over chosen samples, in batches by token budget."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from alignkd.storage.tools.layers.rows import SampleLayers
from alignkd.teacher_dump.bucketing import length_buckets
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.operation.memory_faults import in_halves
from alignkd.teacher_dump.preparation import PreparationThreads, Prepared
from alignkd.teacher_dump.watched_rows import WatchedRows
from alignkd.vlm.errors import InputError

R = TypeVar("R")


class TeacherPass:
    """Runs the teacher over the same samples, each time it is called.

    Args:
        job: section `teacher`: token budget and batch.
        watched: the teacher and its layers.
        threads: make the images' arrays.
        samples: samples with images.
        advance: called with the number of samples done since the last call.
    """

    def __init__(
        self,
        job: DumpJob,
        watched: WatchedRows,
        threads: PreparationThreads,
        samples: Sequence[Prepared],
        advance: Callable[[int], object],
    ) -> None:
        self._job, self._watched, self._threads = job, watched, threads
        self._samples, self._advance = samples, advance

    def __call__(self, reduce: Callable[[SampleLayers], R]) -> Iterator[R]:
        """`reduce` of the attention of every sample, in the order of the batches.

        Raises:
            InputError: a sample does not fit the device's memory, even alone.
        """
        for found in self.of(self._samples, reduce):
            yield found
            self._advance(1)

    def of(self, samples: Sequence[Prepared], reduce: Callable[[SampleLayers], R]) -> Iterator[R]:
        """The same of some samples, which do not count as progress."""
        teacher, prepared = self._job.teacher, list(samples)
        self._watched.begin_window(prepared)
        buckets = length_buckets(
            [sample.length for sample in prepared], token_budget=teacher.token_budget, max_samples=teacher.batch
        )
        for batch in self._threads.batches(prepared, buckets):
            for part, found in in_halves(partial(self._watched, reduce=reduce), batch, lambda: None):
                if found is None:
                    raise InputError(
                        f"sample {part[0].sample.id!r}: {part[0].length} tokens do not fit the device's memory with "
                        f"{len(self._watched.layers)} layers watched; lower data.max_tokens or use a larger device"
                    )
                yield from found
