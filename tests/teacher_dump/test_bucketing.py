"""Batches of similar length: every sample once, within the budget, whatever the order of arrival."""

from hypothesis import given
from hypothesis import strategies as st

from alignkd.teacher_dump.bucketing import length_buckets

LENGTHS = st.lists(st.integers(1, 600), max_size=60)


@given(LENGTHS, st.integers(1, 3000), st.integers(1, 20))
def test_every_sample_once_within_budget(lengths: list[int], budget: int, most: int) -> None:
    batches = length_buckets(lengths, token_budget=budget, max_samples=most)
    assert sorted(number for batch in batches for number in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = len(batch) * max(lengths[number] for number in batch)
        assert len(batch) <= most and (len(batch) == 1 or padded <= budget)
    ordered = [lengths[number] for batch in batches for number in batch]
    assert ordered == sorted(lengths, reverse=True)


@given(LENGTHS, st.integers(1, 3000))
def test_a_batch_ends_only_where_the_next_sample_does_not_fit(lengths: list[int], budget: int) -> None:
    batches = length_buckets(lengths, token_budget=budget, max_samples=10**6)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * lengths[batch[0]] > budget


def test_ties_keep_the_order_of_the_plan() -> None:
    assert length_buckets([5, 7, 5, 7], token_budget=14, max_samples=9) == [[1, 3], [0, 2]]
