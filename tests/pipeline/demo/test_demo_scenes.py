"""The demo's pictures: whose handwriting, what they show, and that the drawing shows it."""

import hashlib
from collections.abc import Iterator
from itertools import count, islice
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from alignkd.pipeline.demo.world.scenes import (
    CELL_PX,
    EMPTY,
    Pool,
    digit_of,
    draw_scene,
    make_scene,
    pool_instances,
)
from alignkd.vlm.errors import InputError

POOLS: tuple[Pool, ...] = get_args(Pool)
DISJOINT: tuple[Pool, ...] = ("train", "development", "test")


def test_pools_share_no_instance_and_leave_none_out() -> None:
    train, development, test = (set(pool_instances(pool).tolist()) for pool in DISJOINT)
    assert not train & development and not train & test and not development & test
    assert train | development | test == set(range(1797))
    assert len(development) == len(test) == 250
    assert development | test == set(pool_instances("held_out").tolist())


def test_pools_are_stratified_by_digit() -> None:
    targets = load_digits().target
    held_out, *halves = (
        np.bincount(targets[pool_instances(pool)], minlength=10) for pool in ("held_out", "development", "test")
    )
    shares = held_out / np.bincount(targets, minlength=10)
    np.testing.assert_allclose(shares, 500 / 1797, atol=0.003)
    assert abs(halves[0] - halves[1]).max() <= 2


def test_held_out_handwriting_is_the_one_the_shipped_teacher_never_saw() -> None:
    """Another split would put the shipped teacher's training handwriting into the evaluation."""
    digest = hashlib.sha256(pool_instances("held_out").astype("<i4").tobytes()).hexdigest()
    assert digest == "99169168be67377f411bcb215a3ac49b42d407c98e4c6664910b6201109d3302"


@pytest.mark.parametrize(
    ("pool", "digest"),
    [
        ("development", "f4cf868026524d3bb84a56605be4353371a3f24a5e390d27171ec3a44135eeb4"),
        ("test", "e6e487038d344130d796270498b6979f5a3760700edb35397a720ba14626dcc3"),
    ],
)
def test_the_second_split_never_moves(pool: Pool, digest: str) -> None:
    """Another split would report results on handwriting that settings were chosen with."""
    assert hashlib.sha256(pool_instances(pool).astype("<i4").tobytes()).hexdigest() == digest


def test_scenes_draw_handwriting_of_their_pool_only() -> None:
    for pool in POOLS:
        drawn = {digit.instance for number in range(300) for digit in make_scene(1, number, pool).digits}
        assert drawn <= set(pool_instances(pool).tolist())
        assert len(drawn) > 240


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), number=st.integers(0, 10**6), pool=st.sampled_from(POOLS))
def test_a_scene_is_well_formed(seed: int, number: int, pool: Pool) -> None:
    scene = make_scene(seed, number, pool)
    assert 3 <= len(scene.digits) <= 6
    cells = [(digit.row, digit.column) for digit in scene.digits]
    assert cells == sorted(set(cells))
    assert {row for row, _ in cells} <= set(scene.grid_rows)
    assert all(digit.value == digit_of(digit.instance) for digit in scene.digits)
    assert int((scene.labels_RC != EMPTY).sum()) == len(scene.digits)
    picture = draw_scene(scene)
    assert (picture.mode, picture.size) == ("RGB", (72, 24 * len(scene.grid_rows)))


def test_pictures_are_a_pure_function_of_seed_and_number() -> None:
    picture = draw_scene(make_scene(3, 17, "train")).tobytes()
    draw_scene(make_scene(3, 18, "train"))
    assert draw_scene(make_scene(3, 17, "train")).tobytes() == picture
    assert draw_scene(make_scene(4, 17, "train")).tobytes() != picture
    assert draw_scene(make_scene(3, 18, "train")).tobytes() != picture


def test_some_scenes_have_two_rows() -> None:
    two_rows = [len(make_scene(0, number, "train").grid_rows) == 2 for number in range(1000)]
    assert 0.11 < np.mean(two_rows) < 0.19


def test_ink_lies_in_the_labelled_cells_and_nowhere_else() -> None:
    for number in range(100):
        scene = make_scene(0, number, "held_out")
        pixels_HW = np.asarray(draw_scene(scene), dtype=np.float64).mean(axis=2)
        rows = len(scene.grid_rows)
        darkest_RC = pixels_HW.reshape(rows, CELL_PX, 3, CELL_PX).min(axis=(1, 3))
        has_digit_RC = scene.labels_RC[list(scene.grid_rows)] != EMPTY
        assert ((np.median(pixels_HW) - darkest_RC > 50) == has_digit_RC).all(), number


def test_drawn_digits_can_be_read() -> None:
    """A nearest neighbour that knows drawings of the train pool reads those of the held-out pool."""
    known, known_labels = _centred_digits(1500, "train")
    asked, asked_labels = _centred_digits(300, "held_out")
    read = known_labels[(asked @ known.T).argmax(axis=1)]
    assert (read == asked_labels).mean() > 0.85


def test_unknown_pool_is_one_line_with_both_values() -> None:
    with pytest.raises(InputError, match="expected train, development, test, held_out, found 'exam'") as caught:
        make_scene(0, 0, "exam")  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def _centred_digits(how_many: int, pool: Pool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Unit vectors of drawn digits, ink box enlarged to the cell, and their labels."""
    vectors, labels = [], []
    for picture, label in islice(_cells(pool), how_many):
        darkness = 255 - np.asarray(picture.convert("L"), dtype=np.float64)
        ink = darkness > (darkness.max() + np.median(darkness)) / 2
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
        vector = np.asarray(picture.convert("L").resize((12, 12), box=box), dtype=np.float64).ravel()
        vector -= vector.mean()
        vectors.append(vector / np.linalg.norm(vector))
        labels.append(label)
    return np.stack(vectors), np.array(labels)


def _cells(pool: Pool) -> Iterator[tuple[Image.Image, int]]:
    """The picture of every cell that has a digit, scene after scene, and the digit."""
    for number in count():
        scene = make_scene(0, number, pool)
        picture = draw_scene(scene)
        for digit in scene.digits:
            left, top = digit.column * CELL_PX, scene.grid_rows.index(digit.row) * CELL_PX
            yield picture.crop((left, top, left + CELL_PX, top + CELL_PX)), digit.value
