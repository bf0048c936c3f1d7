"""The order of samples that are seen unequally often."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import MixedOrder, OrderPart, SampleOrder

WEIGHTS = st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.3])
PARTS = st.lists(st.tuples(st.integers(1, 12), WEIGHTS), min_size=1, max_size=4)


def parts_of(described: list[tuple[int, float]]) -> list[OrderPart]:
    """Parts of consecutive positions, of these sizes and weights."""
    starts = np.cumsum([0, *(size for size, _ in described)])
    return [
        OrderPart(positions=np.arange(start, start + size), weight=weight)
        for start, (size, weight) in zip(starts, described, strict=False)
    ]


def epochs_of(order: SampleOrder, number: int) -> list[np.ndarray[Any, Any]]:
    """The samples of each of the first epochs."""
    steps = -(-number * order.num_samples // order.global_batch)
    stream = np.concatenate([order.global_batch_indices(step) for step in range(steps)])
    return np.split(stream[: number * order.num_samples], number)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**63), st.integers(0, 30))
def test_one_part_of_weight_one_is_the_plain_order(size: int, batch: int, seed: int, step: int) -> None:
    mixed = MixedOrder([OrderPart(positions=np.arange(size))], seed, batch)
    assert (
        mixed.global_batch_indices(step).tolist() == SampleOrder(size, seed, batch).global_batch_indices(step).tolist()
    )


@given(PARTS, st.integers(1, 7), st.integers(0, 99))
def test_every_epoch_has_the_samples_of_each_part(described: list[tuple[int, float]], batch: int, seed: int) -> None:
    parts = parts_of(described)
    order = MixedOrder(parts, seed, batch)
    assert order.num_samples == sum(max(1, round(weight * size)) for size, weight in described)
    for epoch in epochs_of(order, 3):
        for part in parts:
            seen = np.bincount(epoch, minlength=100)[part.positions]
            assert seen.sum() == part.per_epoch
            # whole copies are complete; the rest may span two permutations of the part
            assert seen.min() >= part.per_epoch // len(part.positions)
            assert seen.max() <= part.per_epoch // len(part.positions) + 2


@given(PARTS, st.integers(0, 99))
@settings(max_examples=40)
def test_in_the_long_run_every_sample_of_a_part_is_seen_equally_often(
    described: list[tuple[int, float]], seed: int
) -> None:
    parts = parts_of(described)
    periods = [Fraction(part.per_epoch, len(part.positions)).denominator for part in parts]
    period = int(np.lcm.reduce(periods))
    if period > 2000:
        return
    order = MixedOrder(parts, seed, 5)
    seen = np.bincount(np.concatenate(epochs_of(order, period)), minlength=100)
    for part in parts:
        assert set(seen[part.positions]) == {period * part.per_epoch // len(part.positions)}


@given(PARTS, st.integers(1, 3), st.integers(0, 99), st.integers(0, 25))
def test_a_run_resumes_at_any_step(described: list[tuple[int, float]], quarter: int, seed: int, step: int) -> None:
    unbroken, fresh = (MixedOrder(parts_of(described), seed, 4 * quarter) for _ in range(2))
    run = [unbroken.global_batch_indices(number) for number in range(step + 2)]
    for number in (step, step + 1):
        assert fresh.global_batch_indices(number).tolist() == run[number].tolist()


def test_parts_are_mixed_within_an_epoch() -> None:
    order = MixedOrder(parts_of([(500, 1.0), (100, 5.0)]), 3, 50)
    shares = [np.mean(order.global_batch_indices(step) >= 500) for step in range(20)]
    assert min(shares) > 0.25 and max(shares) < 0.75 and np.mean(shares) == pytest.approx(0.5)


def test_parts_of_equal_size_take_different_places() -> None:
    first, second = (
        epochs_of(MixedOrder(parts_of([(64, 0.5), (64, 0.5)]), 0, 8), 1)[0] % 128 // 64 == n for n in (0, 1)
    )
    epoch = epochs_of(MixedOrder(parts_of([(64, 0.5), (64, 0.5)]), 0, 8), 1)[0]
    assert set(epoch[first] % 64) != set(epoch[second] % 64)
