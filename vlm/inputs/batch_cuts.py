"""Where samples in the order of their lengths are cut into batches: little padding, and not many batches."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# Work of a batch that does not depend on its samples, in positions: every weight is read, every sum of gradients is
# read and written, every kernel is launched. docs/benchmarks.md has the arithmetic. Half or twice as much changes the
# sum of all work by about one percent.
BATCH_COST = 256


def least_work_cuts(lengths: Sequence[int], *, most_positions: int, most_samples: int | None = None) -> list[int]:
    """The place of the first sample of each batch, and the number of samples at the end.

    Of all ways to cut, the one with the least work: padded positions, and `BATCH_COST` for each batch. Of equal ones,
    the one whose batches are larger at the front.

    Args:
        lengths: positions of each sample, falling; at least 1.
        most_positions: maximum of (number of samples x longest of them) for a batch of two or more.
        most_samples: maximum number of samples of a batch; None sets no limit.
    """
    count = len(lengths)
    work, ends = np.zeros(count + 1, np.int64), np.zeros(count, np.int64)
    for start in reversed(range(count)):
        most = min(count - start, max(1, most_positions // lengths[start]), most_samples or count)
        sizes = np.arange(most, 0, -1)
        every = sizes * lengths[start] + work[start + sizes]
        best = int(every.argmin())
        ends[start], work[start] = start + sizes[best], every[best] + BATCH_COST
    cuts = [0]
    while cuts[-1] < count:
        cuts.append(int(ends[cuts[-1]]))
    return cuts


def largest_first(lengths: Sequence[int], cuts: Sequence[int]) -> list[tuple[int, int]]:
    """The first place of each batch and the place after its last; the batch with the most padded positions comes first.

    Args:
        lengths, cuts: as of `least_work_cuts`.
    """
    return sorted(pairwise(cuts), key=lambda span: -(span[1] - span[0]) * lengths[span[0]])
