"""Draws come back exactly, and give an unbiased estimate of the forward Kullback-Leibler divergence."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import RecordError, SampledLogits
from alignkd.storage.logits.sampled import SampledLogitsCodec

FIELDS = ("ids", "counts", "offsets", "entropy")


@st.composite
def sampled_logits(draw: st.DrawFn) -> tuple[SampledLogits, int]:
    """Up to 4 positions over 1000 ids, and the number of draws of each."""
    num_draws = draw(st.sampled_from([1, 2, 7, 255, 256, 60_000]))
    positions = []
    for _ in range(draw(st.integers(0, 4))):
        ids = draw(st.lists(st.integers(0, 999), min_size=1, max_size=min(num_draws, 5), unique=True))
        cuts = (
            draw(st.sets(st.integers(1, num_draws - 1), min_size=len(ids) - 1, max_size=len(ids) - 1))
            if ids[1:]
            else []
        )
        positions.append((ids, np.diff([0, *sorted(cuts), num_draws])))
    entropy = draw(st.lists(st.floats(0, 6.5, width=32), min_size=len(positions), max_size=len(positions)))
    logits = SampledLogits(
        ids=np.array([id for ids, _ in positions for id in ids], np.uint16),
        counts=np.array([count for _, counts in positions for count in counts], np.uint16),
        offsets=np.cumsum([0, *(len(ids) for ids, _ in positions)]).astype(np.int64),
        entropy=np.array(entropy, np.float32),
    )
    return logits, num_draws


@settings(max_examples=50)
@given(sampled_logits(), st.sampled_from([1000, 70_000]))
def test_draws_come_back(case: tuple[SampledLogits, int], vocab_size: int) -> None:
    logits, num_draws = case
    codec = SampledLogitsCodec(vocab_size, num_draws)
    stored = codec.encode(logits)
    assert stored["entry_draws"].dtype == (np.uint8 if num_draws < 256 else np.uint16)
    assert stored["entry_ids"].dtype == (np.uint16 if vocab_size == 1000 else np.uint32)
    decoded = codec.decode(stored.__getitem__)
    decoded.__post_init__()
    for name in FIELDS:
        assert (getattr(decoded, name) == getattr(logits, name)).all(), name


def two_positions(**changes: Any) -> SampledLogits:
    """Three draws each."""
    fields: dict[str, Any] = {
        "ids": np.array([3, 9, 4], np.uint16),
        "counts": np.array([2, 1, 3], np.uint8),
        "offsets": np.array([0, 2, 3], np.int64),
        "entropy": np.array([1.5, 0], np.float32),
    }
    return SampledLogits(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": np.array([2, 2, 3], np.uint8)}, "counts sum to 3..4 draws per position, expected one number"),
        ({"counts": np.array([3, 0, 3], np.uint8)}, "counts has a 0"),
        ({"counts": np.array([2, 1, 3])}, "counts is int64, expected uint8 or uint16"),
        ({"counts": np.array([2, 1], np.uint8)}, "they end at 3, ids has 3, counts has 2"),
        ({"ids": np.array([3, 3, 3], np.uint16)}, "ids has 1 that repeat within a position"),
        ({"offsets": np.array([0, 3])}, r"offsets has shape \(2,\), entropy \(2,\)"),
        ({"offsets": np.array([0, 4, 3])}, "offsets must rise"),
        ({"entropy": np.array([1.5, np.nan], np.float32)}, "entropy has 1 of 2 values that are NaN"),
        ({"entropy": np.array([1.5, -0.1], np.float32)}, "entropy is -0.1 nats, expected 0 or more"),
    ],
)
def test_what_no_sampling_gives_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        two_positions(**changes)


@pytest.mark.parametrize(
    ("vocab_size", "num_draws", "message"),
    [
        (9, 3, "logits hold id 9, expected below vocab_size 9"),
        (40, 4, "logits have 3 draws per position, num_draws is 4"),
        (10, 3, None),
    ],
)
def test_what_does_not_fit_the_store_is_refused(vocab_size: int, num_draws: int, message: str | None) -> None:
    codec = SampledLogitsCodec(vocab_size, num_draws)
    if message is None:
        codec.encode(two_positions())
        return
    with pytest.raises(RecordError, match=message):
        codec.encode(two_positions())


def test_an_entropy_above_that_of_the_uniform_distribution_is_refused() -> None:
    with pytest.raises(RecordError, match=r"entropy is 2.4 nats, expected at most 2.30\d* \(log V\)"):
        SampledLogitsCodec(10, 3).encode(two_positions(entropy=np.array([2.4, 0], np.float32)))


def test_the_estimate_of_the_forward_kl_is_unbiased() -> None:
    """-H - mean over draws of the student's log-prob, over many positions with one distribution."""
    rng = np.random.default_rng(0)
    teacher, student = (p / p.sum() for p in rng.gamma(0.5, size=(2, 20)) + 1e-3)
    N, num_draws = 4000, 8
    draws = rng.multinomial(num_draws, teacher, size=N)
    position, ids = draws.nonzero()
    logits = SampledLogits(
        ids=ids.astype(np.uint16),
        counts=draws[position, ids].astype(np.uint8),
        offsets=np.concatenate([[0], np.cumsum((draws > 0).sum(1))]).astype(np.int64),
        entropy=np.full(N, -(teacher * np.log(teacher)).sum(), np.float32),
    )
    stored = SampledLogitsCodec(20, num_draws)
    back = stored.decode(stored.encode(logits).__getitem__)
    cross = -np.log(student)[back.ids] * back.counts / num_draws
    estimates = np.add.reduceat(cross, back.offsets[:-1]) - back.entropy
    exact = (teacher * np.log(teacher / student)).sum()
    assert abs(estimates.mean() - exact) < 4 * estimates.std() / np.sqrt(N)
    assert estimates.std() > 0
