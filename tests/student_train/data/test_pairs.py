"""Pairs as units: in the order, on every rank, in every micro-batch, whatever limits these."""

import numpy as np
import pytest

from alignkd.storage import MixedOrder, OrderPart, SampleOrder
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.data.division import Division, MicroBatchLimit
from alignkd.student_train.data.samples.pairs import PairedOrder, paired_list, pairs_in_batch, unit_starts

# chosen and rejected records in any places, single records 4 and 9, and a rejected one alone: 10
PARTNERS = {0: 3, 1: 2, 5: 6, 8: 7}
PARTNER = np.full(11, -1)
REJECTED = np.zeros(11, np.bool_)
for chosen, rejected in PARTNERS.items():
    PARTNER[chosen], PARTNER[rejected], REJECTED[rejected] = rejected, chosen, True
REJECTED[10] = True
PAIRS = Pairs(rejected=REJECTED, partner=PARTNER)
UNITS = np.flatnonzero(~PAIRS.second)
LENGTHS = np.array([20, 30, 50, 21, 7, 8, 9, 60, 11, 40, 5])


def test_an_epoch_has_every_record_once_and_pairs_side_by_side() -> None:
    order = PairedOrder(MixedOrder([OrderPart(positions=UNITS)], seed=3, global_batch=len(UNITS)), PAIRS)
    for step in range(3):
        found = order.global_batch_indices(step)
        assert sorted(found) == list(range(11))
        for chosen, rejected in PARTNERS.items():
            places = {int(position): place for place, position in enumerate(found)}
            assert places[rejected] == places[chosen] + 1
    assert order.num_samples == order.global_batch == 7


@pytest.mark.parametrize(
    "limit", [MicroBatchLimit(samples=2), MicroBatchLimit(positions=120), MicroBatchLimit(positions=10)]
)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_no_division_parts_a_pair(limit: MicroBatchLimit, world_size: int) -> None:
    samples = PairedOrder(MixedOrder([OrderPart(positions=UNITS)], 1, len(UNITS)), PAIRS).global_batch_indices(0)
    division = Division(samples, LENGTHS[samples], limit, world_size, unit_starts(samples, PAIRS))
    ranks = [division.of_rank(rank) for rank in range(world_size)]
    assert {len(parts) for parts in ranks} == {len(division)}
    assert sorted(np.concatenate([part for parts in ranks for part in parts])) == list(range(11))
    padded = 0
    for parts in ranks:
        for part in parts:
            batch = pairs_in_batch(part, PAIRS)
            assert {(int(part[a]), int(part[b])) for a, b in batch.rows_G2} == {
                (a, b) for a, b in PARTNERS.items() if a in part
            }
            assert all((a in part) == (b in part) for a, b in PARTNERS.items())
            assert batch.rejected_B.tolist() == REJECTED[part].tolist()
            size = len(part) * int(LENGTHS[part].max(initial=0))
            padded += size
            if limit.positions == 120:
                assert size <= 120
    assert division.sizes == [sum(len(parts[number]) for parts in ranks) for number in range(len(division))]
    assert division.padded_positions == padded


def test_units_of_one_sample_change_nothing() -> None:
    samples = SampleOrder(11, 5, 11).global_batch_indices(0)
    limit = MicroBatchLimit(positions=100)
    for world_size in (1, 2):
        plain = Division(samples, LENGTHS[samples], limit, world_size)
        units = Division(samples, LENGTHS[samples], limit, world_size, np.arange(11))
        assert (plain.sizes, plain.padded_positions) == (units.sizes, units.padded_positions)
        for rank in range(world_size):
            for one, other in zip(plain.of_rank(rank), units.of_rank(rank), strict=True):
                np.testing.assert_array_equal(one, other)


def test_a_list_of_positions_is_put_in_pairs() -> None:
    assert paired_list(np.arange(11), PAIRS).tolist() == [0, 3, 1, 2, 4, 5, 6, 8, 7, 9, 10]
