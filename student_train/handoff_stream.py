"""Values prepared by worker processes, in order.

torch's DataLoader runs the processes and keeps the order; only the bytes take another way (`handoff.py`): a slot of
shared memory that is chosen in this process, at the moment when the value is asked for.
"""

import atexit
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from student_train.errors import TrainError
from student_train.handoff import PackedBatch, unpack
from student_train.handoff_slots import SharedSlots
from student_train.handoff_worker import become_data_worker, dead_workers_are_one_line, no_errors_from_child_signals
from student_train.shared_memory import check_shared_memory

# Values that each worker has finished or works on; and those that the caller holds: one in use, one arriving.
PREFETCHED = 2
IN_USE = 2
# Loaders whose iteration has begun; one that a traceback keeps alive would outlast the program.
_RUNNING: WeakSet[Any] = WeakSet()


@atexit.register
def _end_workers() -> None:
    """Before `multiprocessing` does it at exit: it sends SIGTERM, whose first one a worker survives, and waits."""
    for loader in list(_RUNNING):
        loader.__del__()  # what torch does when nothing refers to it any more: ask the workers to end, and wait


def from_workers(make: Callable[[int], Any], numbers: range, workers: int) -> Iterator[Any]:
    """`make(number)` for each number in order, made by `workers` processes that are forked at the first `next`.

    Tensors lie in memory shared with a worker; they stay what they are as long as any of them is referenced, also when
    all values are kept.

    Raises:
        TrainError: while iterating, when `make` raised one, a worker was killed, or /dev/shm has no room for them.
    """
    check_shared_memory(workers)
    slots = SharedSlots(PREFETCHED * workers + IN_USE)
    loader = DataLoader(
        _HandedOver(make, slots),
        batch_size=None,
        # Runs in this process, whenever a worker is asked for one more value: without a free slot, because the caller
        # keeps many, that value takes torch's way.
        sampler=((number, slots.take()) for number in numbers),
        num_workers=workers,
        prefetch_factor=PREFETCHED,
        multiprocessing_context="fork",  # slots are inherited, not sent
        worker_init_fn=partial(become_data_worker, parent=os.getpid()),
    )
    with no_errors_from_child_signals():
        handed_over = iter(loader)
    _RUNNING.add(handed_over)
    for _ in numbers:
        with dead_workers_are_one_line(workers):
            handed = next(handed_over)
        if isinstance(handed, str):
            raise TrainError(handed)
        yield handed.value(slots)


@contextmanager
def closing_workers(values: Iterator[Any]) -> Iterator[None]:
    """End the workers behind `values` with the block: an error's traceback would keep them waiting."""
    try:
        yield
    finally:
        if isinstance(values, Generator):
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
