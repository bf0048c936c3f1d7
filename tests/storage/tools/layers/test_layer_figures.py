"""Figures of rows of attention: against golden values, and against loops over single rows."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file

from alignkd.storage.tools.layers.figures import LayerFigures, scan_layers
from alignkd.storage.tools.layers.rows import distributions, entropy, image_blocks, sharpness, surprise

GOLDEN = Path(__file__).parents[3] / "golden" / "objectives" / "attention_rows"


@pytest.mark.parametrize("case", [0, 1, 2])
def test_golden_sharpness_and_surprise(case: int) -> None:
    golden = load_file(GOLDEN / f"{case}.safetensors")
    probs_RHC, _ = distributions(golden["in.teacher_columns"].swapaxes(0, 1))
    np.testing.assert_allclose(sharpness(probs_RHC).T, golden["in.weights.sharpness"], rtol=1e-10)
    np.testing.assert_allclose(surprise(probs_RHC, golden["in.mean_map"]).T, golden["in.weights.surprise"], rtol=1e-10)
    np.testing.assert_allclose(probs_RHC.mean(0), golden["in.mean_map"], rtol=1e-10)


@given(arrays(np.float32, (3, 2, 5), elements=st.floats(0, 1, width=32)))
def test_the_identities_of_one_row(attention_RHC: Any) -> None:
    probs, mass = distributions(attention_RHC)
    np.testing.assert_allclose(probs * mass[..., None], attention_RHC, atol=1e-6)
    is_there = mass > 0
    np.testing.assert_allclose(probs.sum(-1)[is_there], 1, rtol=1e-9)
    assert ((sharpness(probs) > -1e-12) & (sharpness(probs) < 1 + 1e-12)).all()
    # a row is not surprising against itself, and against the even map its surprise is ln C - H
    np.testing.assert_allclose(surprise(probs, probs), 0, atol=1e-12)
    even = surprise(probs, np.full((1, 2, 5), 0.2))
    np.testing.assert_allclose(even[is_there], (math.log(5) - entropy(probs))[is_there], atol=1e-9)
    assert not even[~is_there].any() and not sharpness(probs)[~is_there].any()


def test_even_and_single_token_rows() -> None:
    assert sharpness(np.full((1, 4), 0.25)) == pytest.approx(0, abs=1e-12)
    assert sharpness(np.eye(4)[:1]) == pytest.approx(1)
    assert sharpness(np.ones((2, 1))).tolist() == [0, 0]  # a single vision token cannot be looked for


def test_rows_by_image() -> None:
    attention_HRC = np.arange(2 * 5 * 5).reshape(2, 5, 5)
    first, second = image_blocks(attention_HRC, (2, 3), "tqv")
    assert first.shape == (5, 2, 2) and second.shape == (5, 2, 3)
    np.testing.assert_array_equal(second[4, 1], attention_HRC[1, 4, 2:])
    first, second = image_blocks(attention_HRC, (2, 3), "vqv")
    assert first.shape == (2, 2, 2) and second.shape == (3, 2, 3)
    np.testing.assert_array_equal(second[1, 0], attention_HRC[0, 3, 2:])


Sample = dict[int, list[Any]]


def samples(tokens: Iterable[tuple[int, ...]], pairs: str, layers: tuple[int, ...] = (1, 4)) -> list[Sample]:
    """Random blocks [R, H, C]; one entry of `tokens` for each sample, with the vision tokens of its images."""
    rng = np.random.default_rng(5)
    found = []
    for number, images in enumerate(tokens):
        sample: Sample = {}
        for layer in layers:
            rows = [count if pairs == "vqv" else 3 + number for count in images]
            blocks = [rng.dirichlet(np.full(C, 0.4), size=(R, 2)) * 0.7 for R, C in zip(rows, images, strict=True)]
            blocks[0][0, 1] = 0  # a row without mass
            sample[layer] = blocks
        found.append(sample)
    return found


def by_loops(every: list[Sample], layer: int, before: int | None, *, is_vqv: bool) -> dict[str, Any]:
    """The figures of a layer with loops over single numbers."""
    rows: dict[tuple[int, int, int, int], list[float]] = {}
    for number, sample in enumerate(every):
        for image, block in enumerate(sample[layer]):
            for query in range(len(block)):
                for head in range(2):
                    rows[number, image, query, head] = [float(value) for value in block[query, head]]
    shares = {key: [v / sum(row) if sum(row) else 0.0 for v in row] for key, row in rows.items()}
    spread = {key: -sum(v * math.log(v) for v in row if v) for key, row in shares.items()}
    mean = lambda values: sum(values) / len(rows)  # noqa: E731
    found: dict[str, Any] = {
        "vision_mass": mean(sum(row) for row in rows.values()),
        "entropy": mean(spread.values()),
        "sharpness": mean(1 - spread[key] / math.log(len(row)) if sum(row) else 0 for key, row in rows.items()),
    }
    surprises = {}
    for key, row in shares.items():
        # the rows with which this one shares a mean map: of its head, for vision queries also of its token
        others = [at for other, at in shares.items() if other[3] == key[3] and (not is_vqv or other[2] == key[2])]
        if len({len(at) for at in others}) == 1:
            total = [sum(column) for column in zip(*others, strict=True)]
            surprises[key] = sum(v * math.log(v / (t / sum(total))) for v, t in zip(row, total, strict=True) if v)
    found["surprise"] = mean(surprises.values())
    queries = {key[:3] for key in rows}
    found["informative"] = sum(
        any(surprises.get((*query, head), 0) > 0.5 for head in range(2)) for query in queries
    ) / len(queries)
    above = [sum(surprises[key] > 0.5 for key in surprises if key[3] == head) for head in range(2)]
    found["best_head"] = above.index(max(above))
    if before is not None:
        pairs = [pair for sample in every for pair in zip(sample[before], sample[layer], strict=True)]
        found["similarity"] = sum(_cosine(one.mean(1).ravel(), other.mean(1).ravel()) for one, other in pairs) / len(
            pairs
        )
    return found


def _cosine(one: Any, other: Any) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return float(dot / math.sqrt(sum(a * a for a in one) * sum(b * b for b in other)))


def scan(every: list[Sample], pairs: Any, *, has_grid: bool) -> tuple[LayerFigures, ...]:
    def reducing(reduce: Callable[[Any], Any]) -> Iterable[Any]:
        return (reduce(sample.items()) for sample in every)

    return scan_layers(reducing, pairs, has_grid=has_grid).layers


@pytest.mark.parametrize("pairs", ["tqv", "vqv"])
def test_figures_are_those_of_loops(pairs: Any) -> None:
    every = samples([(4,), (4, 4), (4,)], pairs)
    for figures, before in zip(scan(every, pairs, has_grid=True), (None, 1), strict=True):
        expected = by_loops(every, figures.layer, before, is_vqv=pairs == "vqv")
        assert 0 < expected["informative"] < 1
        for name, value in expected.items():
            assert getattr(figures, name) == pytest.approx(value, rel=1e-9), name
        assert figures.queries == sum(len(block) for sample in every for block in sample[figures.layer])
        assert figures.heads == 2 and (before is not None or figures.similarity is None)


def test_images_without_a_common_grid_have_no_surprise() -> None:
    every = samples([(4,), (6, 2), (3,)], "tqv")
    for figures in scan(every, "tqv", has_grid=False):
        assert figures.surprise is figures.informative is None
        rows = [block[query, head] for sample in every for block in sample[figures.layer] for query in range(len(block))
                for head in range(2)]  # fmt: skip
        assert figures.vision_mass == pytest.approx(sum(float(row.sum()) for row in rows) / len(rows))
        spread = [float(sharpness(distributions(row)[0])) for row in rows]
        assert figures.sharpness == pytest.approx(sum(spread) / len(spread))
        assert figures.best_head == int(sum(spread[1::2]) > sum(spread[::2]))
