"""The micro-batches of a step: every sample once, within the limit, as many on every rank, whoever asks and when."""

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from alignkd.storage import SampleOrder
from alignkd.student_train.data.division import Division, Divisions, MicroBatchLimit

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=40)
LIMITS = st.builds(MicroBatchLimit, samples=st.integers(1, 12)) | st.builds(
    MicroBatchLimit, positions=st.integers(1, 4000)
)


def divided(lengths: list[int], limit: MicroBatchLimit, world_size: int) -> list[list[NDArray[np.int64]]]:
    """The samples 100, 101, ... by rank and micro-batch."""
    division = Division(100 + np.arange(len(lengths)), np.array(lengths), limit, world_size)
    ranks = [division.of_rank(rank) for rank in range(world_size)]
    assert {len(division)} == set(map(len, ranks))
    assert division.sizes == [sum(map(len, of_all)) for of_all in zip(*ranks, strict=True)]
    return ranks


def positions_of(samples: NDArray[np.int64], lengths: list[int]) -> int:
    """Padded positions of a micro-batch."""
    return len(samples) * max((lengths[sample - 100] for sample in samples), default=0)


@given(LENGTHS, LIMITS, st.integers(1, 5))
def test_every_sample_once_within_the_limit_on_any_number_of_ranks(
    lengths: list[int], limit: MicroBatchLimit, world_size: int
) -> None:
    ranks = divided(lengths, limit, world_size)
    every = [int(sample) for rank in ranks for batch in rank for sample in batch]
    assert sorted(every) == [100 + place for place in range(len(lengths))]
    share = len(lengths) / world_size
    assert all(int(share) <= sum(map(len, rank)) <= -(-len(lengths) // world_size) for rank in ranks)
    for batch in (batch for rank in ranks for batch in rank):
        assert limit.samples is None or len(batch) <= limit.samples
        assert limit.positions is None or len(batch) <= 1 or positions_of(batch, lengths) <= limit.positions
        assert sorted(batch) == list(batch)  # in the given order
    padded = sum(positions_of(batch, lengths) for rank in ranks for batch in rank)
    assert Division(np.arange(len(lengths)), np.array(lengths), limit, world_size).padded_positions == padded


@given(LENGTHS, LIMITS, st.integers(1, 5))
def test_micro_batches_are_neighbours_in_length_and_the_largest_comes_first(
    lengths: list[int], limit: MicroBatchLimit, world_size: int
) -> None:
    ranks = divided(lengths, limit, world_size)
    together = [np.concatenate(batches) - 100 for batches in zip(*ranks, strict=True)]
    by_length = sorted(together, key=lambda batch: -max(lengths[place] for place in batch))
    found = [length for batch in by_length for length in sorted((lengths[place] for place in batch), reverse=True)]
    assert found == sorted(lengths, reverse=True)
    first = [positions_of(batch, lengths) for batch in ranks[0]]  # the first rank has the longest of each
    assert first == sorted(first, reverse=True)


@given(LENGTHS, st.integers(1, 5))
def test_no_order_has_less_padding_than_that_of_lengths(lengths: list[int], size: int) -> None:
    lengths = lengths * size  # whole micro-batches, as in training
    limit = MicroBatchLimit(samples=size)
    (found,) = divided(lengths, limit, 1)
    given_order = [100 + np.arange(start, start + size) for start in range(0, len(lengths), size)]
    assert sum(positions_of(batch, lengths) for batch in found) <= sum(
        positions_of(batch, lengths) for batch in given_order
    )


def test_equal_lengths_keep_the_order_of_the_step_and_one_micro_batch_is_the_step() -> None:
    assert [list(batch) for batch in divided([5] * 5, MicroBatchLimit(samples=2), 1)[0]] == [
        [100, 101], [102, 103], [104]
    ]  # fmt: skip
    assert [list(batch) for batch in divided([5, 7, 5, 7], MicroBatchLimit(samples=2), 1)[0]] == [
        [101, 103],
        [100, 102],
    ]
    assert [list(batch) for batch in divided([3, 9, 4], MicroBatchLimit(samples=3), 1)[0]] == [[100, 101, 102]]


def test_a_longer_sample_is_alone() -> None:
    ranks = divided([50, 700, 60, 70], MicroBatchLimit(positions=600), 1)
    assert [list(batch) for batch in ranks[0]] == [[101], [100, 102, 103]]


def divisions(limit: MicroBatchLimit, world_size: int, **order: Any) -> Divisions:
    lengths = np.random.default_rng(0).integers(20, 500, 57)
    return Divisions(SampleOrder(57, **{"seed": 3, "global_batch": 12} | order), lengths, limit, world_size)


@given(LIMITS.filter(lambda limit: limit.samples in (None, 1, 2, 3)), st.sampled_from([1, 2, 4]), st.integers(0, 4))
def test_a_step_does_not_depend_on_the_steps_before(limit: MicroBatchLimit, world_size: int, step: int) -> None:
    """So a run resumes at any step, and any data worker may prepare any micro-batch."""
    run, resumed = divisions(limit, world_size), divisions(limit, world_size)
    rank = world_size - 1
    before = [found.tolist() for found in run.positions(range(step + 2), rank) if found is not None]
    after = [found.tolist() for found in resumed.positions(range(step, step + 2), rank) if found is not None]
    assert before[-len(after) :] == after
    assert len(before) == sum(len(run.of_step(number)) for number in range(step + 2))
    seen = [sample for rank in range(world_size) for batch in run.of_step(step).of_rank(rank) for sample in batch]
    assert sorted(seen) == sorted(run.order.global_batch_indices(step))
