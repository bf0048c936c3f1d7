"""DDK's weights against plain loops, and the order of samples that follows from them."""

import math

import numpy as np
import pytest

from alignkd.student_train.data.domains.ddk import first_weights, next_weights, perplexity_ratios
from alignkd.student_train.data.domains.history import DomainHistory
from alignkd.student_train.data.domains.measured import measured_samples
from alignkd.student_train.data.domains.order import DomainOrder, apportioned, stream
from alignkd.student_train.domain_weights_config import DomainWeights


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_weights_against_a_loop(alpha: float) -> None:
    rng = np.random.default_rng(4)
    teacher = rng.uniform(0.5, 1.5, 5)
    found: list[float] = []
    weights = np.zeros(5)
    for interval in range(4):
        student = rng.uniform(1.0, 2.5, 5)
        ratios = [math.exp(s) / math.exp(t) / 1.5 for s, t in zip(student, teacher, strict=True)]
        before = found or [1.0] * 5
        total = sum(r * math.exp(g) for r, g in zip(before, ratios, strict=True))
        factors = [r * math.exp(g) / total for r, g in zip(before, ratios, strict=True)]
        found = [alpha * one + (1 - alpha) / 5 for one in factors] if interval else factors
        measured = perplexity_ratios(student, teacher, 1.5)
        weights = next_weights(weights, measured, alpha) if interval else first_weights(measured)
        assert weights == pytest.approx(found, rel=1e-12) and weights.sum() == pytest.approx(1.0, abs=1e-12)
    if alpha == 0:
        assert weights == pytest.approx([0.2] * 5, rel=1e-15)


def test_equal_gaps_give_equal_weights() -> None:
    ratios = perplexity_ratios([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert first_weights(ratios) == pytest.approx([1 / 3] * 3, rel=1e-12)
    assert next_weights(first_weights(ratios), ratios, 0.7) == pytest.approx([1 / 3] * 3, rel=1e-12)


@pytest.mark.parametrize("nll", [9.0, 100.0, 5000.0])
def test_large_losses_do_not_overflow(nll: float) -> None:
    """One domain gets what can be had; a domain of weight 0 comes back by the share of all domains."""
    ratios = perplexity_ratios([nll, 1.0, 2.0], [1.0, 1.0, 1.0])
    weights = first_weights(ratios)
    assert weights == pytest.approx([1.0, 0.0, 0.0], abs=1e-12)
    assert next_weights(weights, ratios, 0.5) == pytest.approx([0.5 + 1 / 6, 1 / 6, 1 / 6])
    assert next_weights(weights, perplexity_ratios([1.0, 1.0, 4.0], [1.0] * 3), 1.0).sum() == pytest.approx(1.0)


def test_the_history_has_one_row_for_each_measurement() -> None:
    history = DomainHistory(domains=("a", "b"), teacher=(1.0, 1.0))
    for student in ((2.0, 1.0), (1.5, 1.5)):
        history = history.after(student, alpha=0.5, temperature=1.0)
    first = first_weights(perplexity_ratios((2.0, 1.0), (1.0, 1.0)))
    second = next_weights(first, perplexity_ratios((1.5, 1.5), (1.0, 1.0)), 0.5)
    assert np.allclose(history.weights, [first, second], rtol=0, atol=0)
    assert DomainHistory.of(history.document) == history
    assert DomainWeights.model_validate("ddk") == DomainWeights()


DOMAINS = [np.arange(0, 50), np.arange(50, 57), np.arange(57, 80)]
HISTORY = [(0.2, 0.5, 0.3), (0.9, 0.1, 0.0), (0.0, 0.0, 1.0), (1 / 3, 1 / 3, 1 / 3)]


def order(history: list[tuple[float, ...]], seed: int = 3) -> DomainOrder:
    made = DomainOrder(DOMAINS, seed, global_batch=6, interval=10)
    made.restore(history)
    return made


def test_an_interval_has_its_shares() -> None:
    run = order(HISTORY)
    for number, weights in enumerate(HISTORY):
        seen = np.concatenate([run.global_batch_indices(step) for step in range(10 * number, 10 * number + 10)])
        counts = [int(np.isin(seen, domain).sum()) for domain in DOMAINS]
        assert counts == apportioned(weights, 60).tolist() and sum(counts) == 60
        assert counts == pytest.approx([60 * weight for weight in weights], abs=1)


def test_samples_of_a_domain_are_seen_equally_often() -> None:
    """Over all intervals: a domain goes on where it stopped."""
    run = order(HISTORY)
    seen = np.concatenate([run.global_batch_indices(step) for step in range(40)])
    for domain in DOMAINS:
        counts = np.bincount(seen, minlength=80)[domain]
        assert counts.max() - counts.min() <= 1, counts


def test_the_order_follows_from_seed_and_weights() -> None:
    """Steps in any order, and weights that are added later, change nothing; another seed does."""
    whole, later = order(HISTORY), order(HISTORY[:1])
    assert later.knows(9) and not later.knows(10)
    with pytest.raises(ValueError, match="step is 10, expected 0 to 9"):
        later.global_batch_indices(10)
    backwards = {step: whole.global_batch_indices(step).tolist() for step in reversed(range(40))}
    for number, weights in enumerate(HISTORY):
        if number:
            later.add(weights)
        for step in range(10 * number, 10 * number + 10):
            assert later.global_batch_indices(step).tolist() == backwards[step]
    assert order(HISTORY, seed=4).global_batch_indices(0).tolist() != backwards[0]
    changed = order([*HISTORY[:2], (1.0, 0.0, 0.0)])
    assert changed.global_batch_indices(19).tolist() == backwards[19]


def test_weights_of_other_domains_are_refused() -> None:
    for wrong in ((0.5, 0.5), (0.5, 0.6, -0.1), (0.2, 0.2, 0.2)):
        with pytest.raises(ValueError, match="expected 3 that sum to 1"):
            order([]).add(wrong)


def test_a_stream_is_cut_anywhere() -> None:
    whole = stream(7, 1, 0, 50)
    np.testing.assert_array_equal(np.concatenate([stream(7, 1, 0, 13), stream(7, 1, 13, 50)]), whole)
    assert sorted(whole[7:14]) == list(range(7)) and len(stream(7, 1, 5, 5)) == 0


def test_samples_without_labels_measure_nothing() -> None:
    keys = np.array([5, 1, 9, 3, 7], np.uint64)
    has_labels = np.array([True, False, True, True, True])
    assert measured_samples(keys, has_labels, np.arange(5), 2).tolist() == [0, 3]
    assert measured_samples(keys, has_labels, np.array([1]), 2).tolist() == []
