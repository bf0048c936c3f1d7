"""Out of memory: the batch is halved and the run goes on; what does not fit alone is that sample's error."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

# What torch says where it raises a plain RuntimeError instead of OutOfMemoryError.
_MESSAGES = ("CUBLAS_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")


def in_halves(
    compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], halved: Callable[[], object]
) -> Iterator[tuple[Sequence[T], Sequence[R] | None]]:
    """(items, results) of the parts of a batch that fit, in order; None for one item that does not fit alone.

    Nothing is remembered: the next batch is tried whole again, so that what a shard holds depends on its samples and
    the device, not on what was computed before.

    Args:
        halved: called each time a batch is halved.
    """
    results = _within_memory(compute, items)
    if results is not None or len(items) == 1:
        yield items, results
        return
    halved()
    middle = (len(items) + 1) // 2
    yield from in_halves(compute, items[:middle], halved)
    yield from in_halves(compute, items[middle:], halved)


def _within_memory(compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T]) -> Sequence[R] | None:
    try:
        return compute(items)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # here and not above: the error's frames hold the tensors of the attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch found no room on the device."""
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in _MESSAGES)
