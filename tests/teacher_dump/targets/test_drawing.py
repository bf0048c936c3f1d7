"""Draws from the teacher: the right distribution, and the same draws whoever makes them, in whatever order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.storage import SampledLogits
from alignkd.teacher_dump.targets.logits.drawing import draw_tokens, sampled_logits, uniforms


def draw(logits: torch.Tensor, numbers: np.ndarray) -> SampledLogits:
    table = draw_tokens(logits, torch.from_numpy(numbers))
    return sampled_logits({name: values.numpy() for name, values in table.items()})


@given(st.integers(1, 4), st.integers(1, 30), st.integers(1, 40), st.floats(0.1, 20.0), st.integers(0, 10**6))
@settings(max_examples=60)
def test_draws_invert_the_cumulative_distribution(num: int, vocab: int, draws: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, vocab, generator=generator) * scale
    numbers = uniforms(seed, 7, num, draws)
    drawn = draw(logits, numbers)
    dense = logits.double().softmax(-1).numpy()
    for position in range(num):
        entries = slice(int(drawn.offsets[position]), int(drawn.offsets[position + 1]))
        ids, counts = drawn.ids[entries], drawn.counts[entries]
        assert counts.sum() == draws and (counts > 0).all() and (np.diff(ids) > 0).all()
        edges = np.concatenate([[0.0], np.cumsum(dense[position])])
        for token, count in zip(ids, counts, strict=True):
            # probabilities are float32, so a number that close to an edge may fall on either side
            surely = (numbers[position] > edges[token] + 1e-6) & (numbers[position] < edges[token + 1] - 1e-6)
            perhaps = (numbers[position] > edges[token] - 1e-6) & (numbers[position] < edges[token + 1] + 1e-6)
            assert surely.sum() <= count <= perhaps.sum()
        entropy = -np.sum(dense[position] * np.log(np.maximum(dense[position], 1e-300)))
        assert drawn.entropy[position] == pytest.approx(entropy, rel=1e-4, abs=1e-5)


def test_many_draws_have_the_teachers_frequencies() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0, 1.0, -30.0]])
    drawn = draw(logits.expand(4, -1), uniforms(3, 0, 4, 50_000))
    found = np.bincount(drawn.ids, drawn.counts, minlength=5) / 200_000
    expected = logits.softmax(-1)[0].numpy()
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / 200_000)).all()
    assert found[4] == 0


def test_numbers_depend_on_seed_sample_and_position_alone() -> None:
    whole = uniforms(1, 5, 6, 10)
    np.testing.assert_array_equal(uniforms(1, 5, 4, 10), whole[:4])  # a longer sample begins like a shorter one
    assert whole.min() >= 0 and whole.max() < 1
    others = [uniforms(2, 5, 6, 10), uniforms(1, 6, 6, 10), whole[::-1]]
    assert not any((other == whole).any() for other in others)


def test_the_stream_never_changes() -> None:
    """A store must be resumable years later: these are Philox's numbers for key (1, 5)."""
    assert uniforms(1, 5, 2, 2).tolist() == [
        [0.7988550069253694, 0.6724404163032933],
        [0.7301933938270706, 0.2030281410076561],
    ]


def test_a_position_draws_the_same_alone_and_among_others() -> None:
    logits = torch.randn(20, 300, generator=torch.Generator().manual_seed(0)) * 3
    numbers = uniforms(0, 0, 20, 40)
    together = draw(logits, numbers)
    for start, stop in ((0, 1), (7, 8), (5, 20)):
        alone = draw(logits[start:stop], numbers[start:stop])
        entries = slice(int(together.offsets[start]), int(together.offsets[stop]))
        np.testing.assert_array_equal(alone.ids, together.ids[entries])
        np.testing.assert_array_equal(alone.counts, together.counts[entries])
        np.testing.assert_array_equal(alone.entropy, together.entropy[start:stop])


def test_extreme_numbers_stay_within_the_vocabulary() -> None:
    numbers = np.array([[0.0, 1 - 2.0**-53]])
    assert draw(torch.zeros(1, 3), numbers).ids.tolist() == [0, 2]
    assert draw(torch.tensor([[-90.0, 5.0, -90.0]]), numbers).ids.tolist() == [1]  # nothing without mass
