"""Which samples are kept, and ranks of labels, against plain loops."""

import math

import numpy as np
import pytest

from alignkd.storage import SampledLogits, TruncatedLogits
from alignkd.storage.tools.select.keeping import difference_scores, share_of, top_share, within
from alignkd.storage.tools.select.label_rank import UNKNOWN, label_ranks


def test_a_share_is_the_number_that_was_written() -> None:
    assert [share_of(ratio, 100) for ratio in (0.0, 0.29, 0.57, 0.999, 1.0)] == [0, 29, 57, 99, 100]
    assert share_of(0.5, 13) == 6 and share_of(1 / 3, 3) == 1


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_the_top_share_against_a_loop_with_ties(ratio: float) -> None:
    """Ratio 0 keeps nothing, 1 everything; of equal scores the first sample is kept."""
    rng = np.random.default_rng(3)
    scores = np.round(rng.normal(size=37), 1)  # many are equal
    wanted = math.floor(ratio * 37)
    kept: list[int] = []
    while len(kept) < wanted:
        best = max(scores[n] for n in range(37) if n not in kept)
        kept.append(next(n for n in range(37) if n not in kept and scores[n] == best))
    assert top_share(scores, ratio).tolist() == sorted(kept)


def test_the_score_is_a_mean_per_label() -> None:
    """An answer of ten times the length has the same score."""
    reference, teacher, lengths = np.array([2.0, 2.0]), np.array([1.0, 1.0]), np.array([3, 30])
    np.testing.assert_array_equal(difference_scores(reference, teacher), [1.0, 1.0])
    sums = difference_scores(reference * lengths, teacher * lengths)
    np.testing.assert_array_equal(sums / lengths, difference_scores(reference, teacher))


def test_bounds_include_their_ends() -> None:
    assert within([0.0, 1.0, 2.0], least=1.0).tolist() == [1, 2]
    assert within([0.0, 1.0, 2.0], most=1.0).tolist() == [0, 1]


def test_ranks_of_full_logits() -> None:
    logits = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    found = label_ranks(logits, np.array([1, 2]))
    assert found.least.tolist() == found.most.tolist() == [3, 1]  # equal tokens are not before the label


@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_bounds_of_truncated_logits_hold_the_rank(top_k: int) -> None:
    """Random distributions, cut to the most probable tokens and the label: bounds, and exact where they agree."""
    rng = np.random.default_rng(top_k)
    logits = rng.normal(size=(200, 12)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = rng.integers(0, 12, 200)
    exact = label_ranks(logprobs, labels).least
    kept = [[*np.argsort(-row)[:top_k]] for row in logprobs]
    kept = [row if label in row else [*row, label] for row, label in zip(kept, labels, strict=True)]
    found = label_ranks(_cut(logprobs, kept), labels)
    assert (found.least <= exact).all() and (exact <= found.most).all()
    assert (found.least == found.most)[exact < top_k].all()
    known = label_ranks(_cut(logprobs, kept), labels, top_k)
    assert (known.least == known.most)[exact <= top_k].all() and (exact <= known.most).all()
    for k in (1, 2, 5):
        assert (~found.within(k) | (exact <= k)).all()
        assert (found.within(k) | found.undecided(k) | (exact > k)).all()
    assert found.undecided(11).any() or top_k == 8


def test_an_unknown_tail_gives_no_largest_rank() -> None:
    logprobs = np.log(np.array([[0.5, 0.25, 0.25, 0.0 + 1e-9]]))
    cut = _cut(logprobs, [[0, 1]], tail=False)
    missing = label_ranks(cut, np.array([3]))
    assert (missing.least[0], missing.most[0]) == (3, UNKNOWN)
    last = label_ranks(cut, np.array([1]))
    assert (last.least[0], last.most[0] >= UNKNOWN) == (2, True)
    assert label_ranks(cut, np.array([0])).most.tolist() == [1]


def test_draws_have_no_ranks() -> None:
    draws = SampledLogits(
        ids=np.array([1], np.uint16),
        counts=np.array([2], np.uint8),
        offsets=np.array([0, 1], np.int64),
        entropy=np.array([0.1], np.float32),
    )
    with pytest.raises(ValueError, match="draws do not order"):
        label_ranks(draws, np.array([1]))


def _cut(logprobs: np.ndarray, kept: list[list[int]], *, tail: bool = True) -> TruncatedLogits:
    rows = [logprobs[n, ids] for n, ids in enumerate(kept)]
    if not tail:
        rows = [row - np.log(np.exp(row).sum()) for row in rows]
    masses = np.array([max(1e-30, 1 - np.exp(row).sum()) for row in rows])
    return TruncatedLogits(
        ids=np.concatenate(kept).astype(np.uint16),
        logprobs=np.concatenate(rows).astype(np.float32),
        offsets=np.concatenate([[0], np.cumsum([len(ids) for ids in kept])]).astype(np.int64),
        tail_logmass=np.log(masses).astype(np.float32) if tail else None,
    )
