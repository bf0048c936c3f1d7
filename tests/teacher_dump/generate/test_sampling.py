"""Draws against the softmax, top-p against sets by hand, and the noise against splitmix64 in Python's numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkd.teacher_dump.generate.sampling import Sampler, answer_key, gumbel_noise, within_top_p

WORD = 2**64


def splitmix64(key: int, counter: int) -> int:
    """Output `counter` of the generator with the state `key`, from its definition on unsigned words."""
    word = (key + counter * 0x9E3779B97F4A7C15) % WORD
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) % WORD
    return word ^ (word >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6))
def test_the_noise_is_that_of_splitmix64(key: int, position: int) -> None:
    noise = gumbel_noise(torch.tensor([0, key]), position, 3)[1]
    for token, found in enumerate(noise.tolist()):
        word = splitmix64(key % WORD, position * 2**32 + token + 1)
        uniform = ((word >> 11) + 0.5) / 2**53
        assert 0 < uniform < 1
        assert found == pytest.approx(-math.log(-math.log(uniform)), rel=1e-12, abs=1e-12)


def frequencies(sampler: Sampler, logits_V: torch.Tensor, position: int) -> torch.Tensor:
    drawn_B = sampler(logits_V.expand(len(sampler.keys), -1), position)
    return torch.bincount(drawn_B, minlength=len(logits_V)) / len(drawn_B)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_tokens_are_drawn_as_often_as_the_softmax_says(temperature: float) -> None:
    logits_V = torch.tensor([0.0, 1.5, -2.0, 0.7, 0.1])
    keys = [answer_key(7, sample, 0, 0) for sample in range(20_000)]
    sampler = Sampler(keys=keys, temperature=temperature, top_p=1.0)
    expected_V = (logits_V / temperature).softmax(-1)
    error_V = (expected_V * (1 - expected_V) / len(keys)).sqrt()
    for position in (0, 5):
        assert ((frequencies(sampler, logits_V, position) - expected_V).abs() < 4 * error_V).all()


def test_draws_at_several_positions_of_one_answer_are_independent() -> None:
    """Pairs of draws at two positions have the product of the probabilities."""
    logits_V = torch.tensor([0.0, 1.0, -1.0])
    keys = [answer_key(1, sample, 0, 0) for sample in range(20_000)]
    sampler = Sampler(keys=keys, temperature=1.0, top_p=1.0)
    first, second = (sampler(logits_V.expand(len(keys), -1), position) for position in (3, 4))
    pairs = torch.bincount(first * 3 + second, minlength=9) / len(keys)
    expected = torch.outer(logits_V.softmax(-1), logits_V.softmax(-1)).flatten()
    assert ((pairs - expected).abs() < 4 * (expected / len(keys)).sqrt()).all()


def test_a_draw_depends_on_its_own_row_alone() -> None:
    logits_BV = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    keys = [answer_key(0, sample, entry, 1) for sample in range(3) for entry in range(2)]
    together = Sampler(keys=keys, temperature=0.8, top_p=0.9)(logits_BV, 11)
    alone = [
        int(Sampler(keys=[key], temperature=0.8, top_p=0.9)(logits_BV[row : row + 1], 11))
        for row, key in enumerate(keys)
    ]
    assert together.tolist() == alone
    assert len({answer_key(*key) for key in [(0, 0, 0, 1), (0, 0, 1, 0), (0, 1, 0, 0), (1, 0, 0, 0)]}) == 4


def test_top_p_by_hand() -> None:
    """Probabilities 0.4, 0.3, 0.2, 0.1, in another order."""
    logits_BV = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for top_p, kept in (
        (0.05, [1]),
        (0.4, [1]),
        (0.41, [1, 3]),
        (0.85, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
        (1.0, range(4)),
    ):
        assert torch.isfinite(within_top_p(logits_BV, top_p))[0].nonzero().flatten().tolist() == list(kept)
    equal = torch.zeros(1, 4)
    assert torch.isfinite(within_top_p(equal, 0.5)).tolist() == [[True, True, False, False]]


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=8),
    st.floats(0.01, 0.99),
)
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(logits: list[float], top_p: float) -> None:
    kept_V = torch.isfinite(within_top_p(torch.tensor([logits]), top_p))[0]
    masses_V = torch.tensor(logits).double().softmax(-1)
    kept, least = masses_V[kept_V], masses_V[kept_V].min()
    assert float(kept.sum()) >= top_p - 1e-9
    assert float(kept.sum() - least) < top_p + 1e-9  # none can be left out
    assert (masses_V[~kept_V] <= least).all()


def test_nothing_outside_top_p_is_drawn() -> None:
    logits_V = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    keys = [answer_key(0, sample, 0, 0) for sample in range(4000)]
    found_V = frequencies(Sampler(keys=keys, temperature=1.0, top_p=0.6), logits_V, 0)
    expected_V = torch.tensor([4 / 7, 3 / 7, 0.0, 0.0])
    assert found_V[2:].tolist() == [0.0, 0.0]
    assert ((found_V - expected_V).abs() < 0.04).all()
