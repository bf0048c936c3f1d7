"""Groups of consecutive supervised positions that a loss compares with one another, as plain sizes on the host.

A group lies within one sample, so it depends neither on the other samples of a micro-batch nor on the ranks.
"""

import itertools
from collections.abc import Iterable, Sequence


def position_groups(positions_of_sample: Iterable[int], largest: int) -> tuple[int, ...]:
    """Sizes of the groups of all samples in their order.

    Args:
        positions_of_sample: supervised positions of each sample; one without any has no group.
        largest: most positions of a group, at least 1. A sample has as few groups as that allows, and their sizes
            differ by at most 1.
    """
    groups: list[int] = []
    for positions in positions_of_sample:
        num_groups = -(-positions // largest)
        groups += [(positions + place) // num_groups for place in range(num_groups)]
    return tuple(groups)


def groups_in(groups: Sequence[int], chunk: slice) -> tuple[int, ...]:
    """The sizes of the groups of a chunk, which begins and ends with a group."""
    ends = list(itertools.accumulate(groups))
    stop = min(chunk.stop, ends[-1] if ends else 0)
    found = tuple(size for size, end in zip(groups, ends, strict=True) if chunk.start < end <= stop)
    assert sum(found) == stop - chunk.start, (groups, chunk)
    return found


def chunks_of_groups(groups: Iterable[int], fitting: int) -> list[slice]:
    """Chunks of whole groups, with at most `fitting` positions unless one group alone has more."""
    chunks: list[slice] = []
    start = stop = 0
    for size in groups:
        if stop > start and stop + size - start > fitting:
            chunks.append(slice(start, stop))
            start = stop
        stop += size
    return [*chunks, slice(start, stop)] if stop > start else chunks
