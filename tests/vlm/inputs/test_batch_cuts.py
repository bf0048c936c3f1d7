"""Cuts of samples in order of length: within the limits, and of all cuts those with the least work."""

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.inputs.batch_cuts import BATCH_COST, least_work_cuts

FALLING = st.lists(st.integers(1, 900), max_size=9).map(lambda lengths: sorted(lengths, reverse=True))


def work(lengths: list[int], cuts: list[int]) -> int:
    return sum((end - start) * lengths[start] + BATCH_COST for start, end in pairwise(cuts))


@given(FALLING, st.integers(1, 3000), st.none() | st.integers(1, 5))
def test_no_other_cuts_take_less_work(lengths: list[int], budget: int, most: int | None) -> None:
    def fits(start: int, end: int) -> bool:
        return end - start == 1 or (end - start <= (most or 9) and (end - start) * lengths[start] <= budget)

    cuts = least_work_cuts(lengths, most_positions=budget, most_samples=most)
    assert all(fits(start, end) for start, end in pairwise(cuts))
    inner = range(1, len(lengths))
    every = (
        [0, *chosen, len(lengths)]
        for count in range(len(lengths))
        for chosen in combinations(inner, count)
        if all(fits(start, end) for start, end in pairwise([0, *chosen, len(lengths)]))
    )
    if lengths:
        assert work(lengths, cuts) == min(work(lengths, other) for other in every)
    else:
        assert cuts == [0]


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 4000))
def test_samples_of_one_length_fill_their_batches(count: int, length: int, budget: int) -> None:
    """No more batches than needed, and all but the last are full."""
    full = max(1, budget // length)
    assert least_work_cuts([length] * count, most_positions=budget) == [*range(0, count, full), count]
