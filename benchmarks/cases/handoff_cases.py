"""Hand-off from worker processes to the training process: the same records, handed over in several ways."""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alignkd.student_train.data.handoff.block import PackedBatch, unpack
from alignkd.student_train.data.handoff.stream import IN_USE, PREFETCHED, FromWorkers
from cases.measuring import Case
from cases.synthetic_records import RawFile

BATCH = 8
FEWEST = 16  # least number of batches: fewer give no reliable figure
WORKERS = (1, 2)
Sample = dict[str, Tensor]
STOCK, JOINED, BLOCK, OURS = (
    "stock DataLoader, a tensor per field and sample",
    "stock DataLoader, a tensor per field of the batch",
    "stock DataLoader, one block per batch",
    "alignkd: one block per batch, slots used again",
)


def handoff_cases(raw: RawFile, megabytes: int) -> list[Case]:
    """Each way with one and two workers; every byte is copied, as a transfer to a device would do."""
    rows = np.random.default_rng(2).permutation(len(raw))
    wanted = max(FEWEST, megabytes * 1_000_000 // int(raw.starts[-1] / len(raw) * BATCH))

    def sample(number: int) -> Sample:
        return {name: torch.from_numpy(array) for name, array in raw.arrays(int(rows[number % len(rows)])).items()}

    def batch(number: int) -> list[Sample]:
        return [sample(number * BATCH + place) for place in range(BATCH)]

    def stock(numbers: range, workers: int) -> Iterable[Any]:
        order = range(numbers.start * BATCH, numbers.stop * BATCH)
        return _loader(_Made(sample), workers, sampler=order, batch_size=BATCH, collate_fn=list)

    def joined(numbers: range, workers: int) -> Iterable[Any]:
        return _loader(_Made(lambda number: [_join(batch(number))]), workers, sampler=numbers, batch_size=None)

    def block(numbers: range, workers: int) -> Iterator[Any]:
        for block_N, rest_start in _loader(_Made(lambda n: _pack(batch(n))), workers, sampler=numbers, batch_size=None):
            yield unpack(block_N, rest_start)

    def ours(numbers: range, workers: int) -> Iterable[Any]:
        return FromWorkers(batch, numbers, workers)

    alone = "hand-off: none, read in the training process"
    cases = [Case(alone, _timed(lambda numbers, workers: map(batch, numbers), wanted, 0))]
    for workers in WORKERS:
        processes = f"{workers} worker{'s' * (workers > 1)}"
        against = f"hand-off: {STOCK}, {processes}"
        cases.append(Case(against, _timed(stock, wanted, workers)))
        for name, way, goal in ((JOINED, joined, None), (BLOCK, block, None), (OURS, ours, 4.0)):
            cases.append(Case(f"hand-off: {name}, {processes}", _timed(way, wanted, workers), against, goal))
    return cases


class _Made(Dataset[Any]):
    """Calls a function with a number."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def _loader(dataset: Dataset[Any], workers: int, **settings: Any) -> DataLoader[Any]:
    return DataLoader(dataset, num_workers=workers, prefetch_factor=PREFETCHED, **settings)


def _join(samples: list[Sample]) -> Sample:
    return {name: torch.cat([sample[name].reshape(-1) for sample in samples]) for name in samples[0]}


def _pack(samples: list[Sample]) -> tuple[Tensor, int]:
    packed = PackedBatch(samples)
    block_N = torch.empty(packed.num_bytes, dtype=torch.uint8)
    packed.write(block_N)
    return block_N, packed.rest_start


def _timed(
    batches: Callable[[range, int], Iterable[list[Sample]]], wanted: int, workers: int
) -> Callable[[], tuple[int, float]]:
    """Time `wanted` batches, after those that fill all queues and slots for the first time."""
    warm = 2 * (PREFETCHED * workers + IN_USE)

    def run() -> tuple[int, float]:
        staging_N = torch.empty(4 * BATCH << 20, dtype=torch.uint8)
        found = iter(batches(range(warm + wanted), workers))
        for _ in range(warm):
            _copy_out(next(found), staging_N)
        started = time.perf_counter()
        size = sum(_copy_out(samples, staging_N) for samples in found)
        return size, time.perf_counter() - started

    return run


def _copy_out(samples: list[Sample], staging_N: Tensor) -> int:
    end = 0
    for sample in samples:
        for tensor in sample.values():
            staging_N[end : end + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8)
            end += tensor.nbytes
    return end
