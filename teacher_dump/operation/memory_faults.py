"""Out of memory: halve the batch and continue; a sample that does not fit alone is unusable."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from alignkd.vlm.hardware.memory_faults import is_out_of_memory, may_be_out_of_memory

T = TypeVar("T")
R = TypeVar("R")


def in_halves(
    compute: Callable[[Sequence[T]], Sequence[R]], items: Sequence[T], halved: Callable[[], object]
) -> Iterator[tuple[Sequence[T], Sequence[R] | None]]:
    """(items, results) of the parts of a batch that fit, in order; None for one item that does not fit alone.

    The next batch is tried whole again, so that the content of a shard depends on its samples and the device, not on
    earlier batches.

    Args:
        halved: called each time a batch is halved.

    Raises:
        RuntimeError: any other error; for a single item also an error that is not certainly a lack of memory.
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
        # calling a sample unusable needs certainty; halving a batch does not
        if not (is_out_of_memory(error) if len(items) == 1 else may_be_out_of_memory(error)):
            raise
        _check_device(error)
    # here and not above, because the error's frames hold the tensors of the attempt
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _check_device(error: RuntimeError) -> None:
    """Raise the error if the device is broken, which is not the fault of a sample."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            raise error from None
