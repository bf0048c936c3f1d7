"""Values prepared by worker processes, in order.

torch's DataLoader runs the processes and keeps the order. Only the bytes are passed differently: through a slot of
shared memory (`slots.py`), which this process selects when it requests the value.
"""

import atexit
import os
from collections.abc import Callable, Iterable, Iterator
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
    restore_sigchld_handler,
    worker_death_as_train_error,
)
from alignkd.student_train.errors import TrainError

# Values that each worker has finished or works on; and values that the caller holds: one in use, one arriving.
PREFETCHED = 2
IN_USE = 2
# Loaders that are iterating; one that a traceback keeps alive would outlast the program.
_RUNNING: WeakSet[Any] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """End workers before `multiprocessing` does at exit: it sends one SIGTERM, which a worker survives, and waits."""
    for loader in list(_RUNNING):
        _end(loader)


def _end(loader: Any) -> None:
    """Ask the workers of a loader to end, and wait: what torch does when the loader is deleted."""
    if loader in _RUNNING:
        _RUNNING.discard(loader)
        loader.__del__()


class FromWorkers(Iterator[Any]):
    """`make(number)` for each number in order, made by `workers` processes.

    A number may be any value that can be pickled. It is taken when a worker is free for it.

    They are forked at construction and start at once. A forked process keeps the memory of its parent: every page that
    the parent writes later exists twice or more often. So create the workers before the process allocates much memory.

    Tensors share memory with a worker. It is not reused while a tensor in it is referenced, so all values may be kept.

    Raises:
        TrainError: /dev/shm is too small; while iterating, if `make` raised a TrainError or a worker was killed.
    """

    def __init__(self, make: Callable[[Any], Any], numbers: Iterable[Any], workers: int) -> None:
        check_shared_memory(workers)
        self._workers, self._slots = workers, SharedSlots(PREFETCHED * workers + IN_USE)
        slots = self._slots
        loader = DataLoader(
            _HandedOver(make, slots),
            batch_size=None,
            # Runs in this process, whenever another value is requested from a worker. If no slot is free, because the
            # caller keeps many values, torch passes the value.
            sampler=((number, slots.take()) for number in numbers),
            num_workers=workers,
            prefetch_factor=PREFETCHED,
            multiprocessing_context="fork",  # slots are inherited, not sent
            worker_init_fn=partial(become_data_worker, parent=os.getpid()),
        )
        with restore_sigchld_handler():
            self._handed_over: Any = iter(loader)
        _RUNNING.add(self._handed_over)

    def __next__(self) -> Any:
        with worker_death_as_train_error(self._workers):
            handed = next(self._handed_over, None)
        if handed is None:
            raise StopIteration
        if isinstance(handed, str):
            raise TrainError(handed)
        return handed.value(self._slots)

    def close(self) -> None:
        """End the workers and wait for them; the iterator is then exhausted."""
        running, self._handed_over = self._handed_over, iter(())
        _end(running)


@contextmanager
def closing_workers(values: Iterator[Any], *, only_after_an_error: bool = False) -> Iterator[None]:
    """End the workers of `values` at the end of the block: the traceback of an error would keep them alive."""
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
    """Where a worker put a value: in a slot, or in a block inside this message."""

    slot: int | None
    block_N: Tensor | None
    rest_start: int
    num_bytes: int

    def value(self, slots: SharedSlots) -> Any:
        """The value, in place; its slot is free again when the last of its tensors is deleted."""
        block_N = self.block_N if self.slot is None else slots.read(self.slot, self.num_bytes)
        assert block_N is not None
        return unpack(block_N, self.rest_start)


class _HandedOver(Dataset[_Handed | str]):
    """Writes the value of a (number, slot) into that slot; runs in a worker."""

    def __init__(self, make: Callable[[Any], Any], slots: SharedSlots) -> None:
        self.make, self.slots = make, slots

    def __getitem__(self, request: tuple[Any, int | None]) -> _Handed | str:
        number, slot = request
        try:
            packed = PackedBatch(self.make(number))
        except TrainError as error:
            return str(error)  # the parent raises it: an exception in a worker would arrive as a long traceback
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
