"""Values prepared by worker processes, in order.

torch's DataLoader runs the processes and keeps the order; only the bytes take another way (`handoff.py`): a slot of
shared memory that is chosen in this process, at the moment when the value is asked for.
"""

import atexit
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkd.student_train.data.handoff.block import PackedBatch, unpack
from alignkd.student_train.data.handoff.shared_memory import check_shared_memory
from alignkd.student_train.data.handoff.slots import SharedSlots
from alignkd.student_train.data.handoff.worker import (
    become_data_worker,
    dead_workers_are_one_line,
    no_errors_from_child_signals,
)
from alignkd.student_train.errors import TrainError

# Values that each worker has finished or works on; and those that the caller holds: one in use, one arriving.
PREFETCHED = 2
IN_USE = 2
# Loaders whose iteration has begun; one that a traceback keeps alive would outlast the program.
_RUNNING: WeakSet[Any] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """Before `multiprocessing` does it at exit: it sends SIGTERM, whose first one a worker survives, and waits."""
    for loader in list(_RUNNING):
        _end(loader)


def _end(loader: Any) -> None:
    """What torch does when nothing refers to a loader any more: ask its workers to end, and wait."""
    if loader in _RUNNING:
        _RUNNING.discard(loader)
        loader.__del__()


class FromWorkers(Iterator[Any]):
    """`make(number)` for each number in order, made by `workers` processes.

    They are forked here, at construction, and begin at once. A forked process keeps the memory that its parent had
    then: every page that the parent writes later exists twice, or more. So whoever needs much memory starts the workers
    before it has that memory.

    Tensors lie in memory shared with a worker; they stay what they are as long as any of them is referenced, also when
    all values are kept.

    Raises:
        TrainError: while iterating, when `make` raised one, a worker was killed, or /dev/shm has no room for them.
    """

    def __init__(self, make: Callable[[int], Any], numbers: range, workers: int) -> None:
        check_shared_memory(workers)
        self._workers, self._slots = workers, SharedSlots(PREFETCHED * workers + IN_USE)
        slots = self._slots
        loader = DataLoader(
            _HandedOver(make, slots),
            batch_size=None,
            # Runs in this process, whenever a worker is asked for one more value: without a free slot, because the
            # caller keeps many, that value takes torch's way.
            sampler=((number, slots.take()) for number in numbers),
            num_workers=workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context="fork",  # slots are inherited, not sent
            worker_init_fn=partial(become_data_worker, parent=os.getpid()),
        )
        with no_errors_from_child_signals():
            self._handed_over: Any = iter(loader)
        _RUNNING.add(self._handed_over)

    def __next__(self) -> Any:
        with dead_workers_are_one_line(self._workers):
            handed = next(self._handed_over, None)
        if handed is None:
            raise StopIteration
        if isinstance(handed, str):
            raise TrainError(handed)
        return handed.value(self._slots)

    def close(self) -> None:
        """End the workers, and wait until they are gone; there is no next value."""
        running, self._handed_over = self._handed_over, iter(())
        _end(running)


@contextmanager
def closing_workers(values: Iterator[Any], *, only_after_an_error: bool = False) -> Iterator[None]:
    """End the workers behind `values` with the block: an error's traceback would keep them waiting."""
    try:
        yield
    except BaseException:
        only_after_an_error = False
        raise
    finally:
        if isinstance(values, FromWorkers) and not only_after_an_error:
            values.close()


@dataclass(frozen=True, kw_only=True)
class _Handed:
    """Where a worker put a value: in a slot, or in a block that travels with this message."""

    slot: int | None
    block_N: Tensor | None
    rest_start: int
    num_bytes: int

    def value(self, slots: SharedSlots) -> Any:
        """The value, in place; its slot is free again when the last of its tensors is gone."""
        block_N = self.block_N if self.slot is None else slots.read(self.slot, self.num_bytes)
        assert block_N is not None
        return unpack(block_N, self.rest_start)


class _HandedOver(Dataset[_Handed | str]):
    """(number, slot) -> the value in that slot; asked in a worker."""

    def __init__(self, make: Callable[[int], Any], slots: SharedSlots) -> None:
        self.make, self.slots = make, slots

    def __getitem__(self, request: tuple[int, int | None]) -> _Handed | str:
        number, slot = request
        try:
            packed = PackedBatch(self.make(number))
        except TrainError as error:
            return str(error)  # raised by the parent: a worker's exception would arrive as a page of traceback
        if slot is None:
            block_N = torch.empty(packed.num_bytes, dtype=torch.uint8)
        else:
            block_N = self.slots.writable(slot, packed.num_bytes)
        packed.write(block_N)
        return _Handed(
            slot=slot,
            block_N=block_N if slot is None else None,
            rest_start=packed.rest_start,
            num_bytes=packed.num_bytes,
        )
