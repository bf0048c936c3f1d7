"""Batches of similar length: every sample once, within the budget, whatever the order of arrival."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.teacher_dump.bucketing import least_work_buckets, length_buckets
from alignkd.vlm.inputs.batch_cuts import BATCH_COST

LENGTHS = st.lists(st.integers(1, 600), max_size=60)


def padded(batch: list[int], lengths: list[int]) -> int:
    return len(batch) * max(lengths[number] for number in batch)


@pytest.mark.parametrize("buckets", [length_buckets, least_work_buckets])
@given(lengths=LENGTHS, budget=st.integers(1, 3000), most=st.integers(1, 20))
def test_every_sample_once_within_budget(buckets: Any, lengths: list[int], budget: int, most: int) -> None:
    batches = buckets(lengths, token_budget=budget, max_samples=most)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= most and (len(batch) == 1 or padded(batch, lengths) <= budget)
    by_length = sorted(batches, key=lambda batch: -lengths[batch[0]])
    assert [lengths[number] for batch in by_length for number in batch] == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 3000), st.integers(1, 20))
def test_more_batches_only_where_they_take_less_work(lengths: list[int], budget: int, most: int) -> None:
    found, fewest = (
        buckets(lengths, token_budget=budget, max_samples=most) for buckets in (least_work_buckets, length_buckets)
    )
    assert len(found) >= len(fewest)
    least, other = (sum(padded(batch, lengths) + BATCH_COST for batch in batches) for batches in (found, fewest))
    assert least <= other
    sizes = [padded(batch, lengths) for batch in found]
    assert sizes == sorted(sizes, reverse=True)


@given(LENGTHS, st.integers(1, 3000))
def test_a_batch_ends_only_where_the_next_sample_does_not_fit(lengths: list[int], budget: int) -> None:
    batches = length_buckets(lengths, token_budget=budget, max_samples=10**6)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_ties_keep_the_order_of_the_plan() -> None:
    for buckets in (length_buckets, least_work_buckets):
        assert buckets([5, 7, 5, 7], token_budget=14, max_samples=9) == [[1, 3], [0, 2]]
