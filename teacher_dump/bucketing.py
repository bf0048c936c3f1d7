"""Which samples share a forward pass: a pure function of the plan and of lengths, so that a resumed dump is the same.

Samples of similar length are batched together to reduce padding. Records are written in the order of the plan, so only
samples of one window (consecutive in the plan) are mixed, and at most a window of records waits.
"""

from collections.abc import Sequence


def length_buckets(lengths: Sequence[int], *, token_budget: int, max_samples: int) -> list[list[int]]:
    """Indices of the samples of each batch, longest first, so that a lack of memory shows at once.

    Args:
        lengths: embedded tokens of each sample of a window.
        token_budget: maximum of (number of samples x longest of them) for a batch of two or more.
        max_samples: maximum number of samples of a batch.
    """
    batches: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda number: (-lengths[number], number)):
        if batches and _has_room(len(batches[-1]), lengths[batches[-1][0]], token_budget, max_samples):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _has_room(num_samples: int, longest: int, token_budget: int, max_samples: int) -> bool:
    return num_samples < max_samples and (num_samples + 1) * longest <= token_budget
