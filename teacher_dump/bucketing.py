"""Which samples share a forward pass: a pure function of the plan and of lengths, so that a resumed dump is the same.

Samples of similar length are batched together to reduce padding. Records are written in the order of the plan, so only
samples of one window (consecutive in the plan) are mixed, and at most a window of records waits.
"""

from collections.abc import Sequence

from alignkd.vlm.inputs.batch_cuts import largest_first, least_work_cuts


def least_work_buckets(lengths: Sequence[int], *, token_budget: int, max_samples: int) -> list[list[int]]:
    """Indices of the samples of each batch, with the least work for a forward pass over each.

    The batch with the most padded positions comes first, so that a lack of memory shows at once.

    Args:
        lengths: embedded tokens of each sample of a window.
        token_budget: maximum of (number of samples x longest of them) for a batch of two or more.
        max_samples: maximum number of samples of a batch.
    """
    order = _longest_first(lengths)
    falling = [lengths[number] for number in order]
    cuts = least_work_cuts(falling, most_positions=token_budget, most_samples=max_samples)
    return [order[start:end] for start, end in largest_first(falling, cuts)]


def length_buckets(lengths: Sequence[int], *, token_budget: int, max_samples: int) -> list[list[int]]:
    """The fewest batches, longest samples first: for answers, of which each batch takes hundreds of forward passes.

    Args:
        lengths, token_budget, max_samples: as of `least_work_buckets`.
    """
    batches: list[list[int]] = []
    for number in _longest_first(lengths):
        if batches and _has_room(len(batches[-1]), lengths[batches[-1][0]], token_budget, max_samples):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))


def _has_room(num_samples: int, longest: int, token_budget: int, max_samples: int) -> bool:
    return num_samples < max_samples and (num_samples + 1) * longest <= token_budget
