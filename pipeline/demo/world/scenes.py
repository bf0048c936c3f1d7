"""Draws the demo's pictures: a grid of cells in which some hold a real handwritten digit.

The handwriting is scikit-learn's copy of the UCI digits (1,797 images of 8 x 8 pixels, ink 0..16). Fixed splits by
instance give three pools without a common instance: `train`; `development`, on which settings are chosen; and `test`,
on which results are reported. `held_out` is the union of the last two, which the shipped teacher has not been trained
on; the log of its training and the results before the second split used it.

Shape letters: R = 3 grid rows, C = 3 grid columns; H, W = height and width in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from alignkd.vlm.errors import InputError

Pool = Literal["train", "development", "test", "held_out"]
"""The handwriting that a scene uses; `held_out` is the union of `development` and `test`."""

CELL_PX = 24
EMPTY = -1
COLUMN_NAMES = ("left", "center", "right")
ROW_NAMES = ("top", "middle", "bottom")
CELL_NAMES = (
    ("top-left", "top-center", "top-right"),
    ("middle-left", "center", "middle-right"),
    ("bottom-left", "bottom-center", "bottom-right"),
)
"""`CELL_NAMES[row][column]`; each is one word, so that a tokenizer can make it one piece."""

# The shipped teacher was trained on the train pool of this split.
_SPLIT_SEED = 1797
_HELD_OUT_SHARE = 500 / 1797
_SECOND_SPLIT_SEED = 1798
_MIN_DIGITS, _MAX_DIGITS = 3, 6
_MAX_REPEATS = 4
_TWO_ROW_SHARE = 0.15
_REPEAT_SHARE = 0.3
# First elements of the random seeds; they make content, drawing and single digits independent.
_CONTENT_STREAM, _DRAWING_STREAM = 101, 102


@dataclass(frozen=True, kw_only=True)
class PlacedDigit:
    """One handwritten digit and its cell."""

    value: int
    """0..9."""
    instance: int
    """Row of `load_digits()` that is drawn."""
    row: int
    """Grid row, 0 = top, 1 = middle, 2 = bottom."""
    column: int
    """Grid column, 0 = left, 2 = right."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The content of a picture. A two-row scene has the grid rows 0 (top) and 2 (bottom), but no middle row."""

    seed: int
    number: int
    pool: Pool
    grid_rows: tuple[int, ...]
    """`(0, 1, 2)`, or `(0, 2)` for a picture of 72 x 48 pixels."""
    digits: tuple[PlacedDigit, ...]
    """3 to 6 digits in reading order."""

    @property
    def labels_RC(self) -> NDArray[np.int8]:
        """Digit of each grid cell, int8 [3, 3]; `EMPTY` for an empty or missing cell."""
        labels_RC = np.full((len(ROW_NAMES), len(COLUMN_NAMES)), EMPTY, dtype=np.int8)
        for digit in self.digits:
            labels_RC[digit.row, digit.column] = digit.value
        return labels_RC

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return len(COLUMN_NAMES) * CELL_PX, len(self.grid_rows) * CELL_PX


def pool_instances(pool: Pool) -> NDArray[np.int64]:
    """Instance numbers (rows of `load_digits()`) of one pool, ascending, stratified by digit.

    Raises:
        InputError: the pool is none of `Pool`.
    """
    check_pool(pool)
    held_out, test = _held_out_mask(), _test_mask()
    masks = {"train": ~held_out, "development": held_out & ~test, "test": test, "held_out": held_out}
    return np.flatnonzero(masks[pool])


def check_pool(pool: str) -> None:
    """Refuse any pool but those of `Pool`."""
    if pool not in get_args(Pool):
        expected = ", ".join(get_args(Pool))
        raise InputError(f"handwriting pool: expected {expected}, found {pool!r}; choose one of them")


def digit_of(instance: int) -> int:
    """The digit of an instance."""
    return int(_handwriting()[1][instance])


def make_scene(seed: int, number: int, pool: Pool) -> Scene:
    """Choose the content of scene `number`; a pure function of the arguments."""
    check_pool(pool)
    rng = np.random.default_rng([_CONTENT_STREAM, seed, number])
    grid_rows = (0, 2) if rng.random() < _TWO_ROW_SHARE else (0, 1, 2)
    cells = [(row, column) for row in grid_rows for column in range(len(COLUMN_NAMES))]
    how_many = int(rng.integers(_MIN_DIGITS, _MAX_DIGITS + 1))
    chosen = sorted(rng.choice(len(cells), size=how_many, replace=False).tolist())
    values = _choose_values(rng, how_many)
    digits = tuple(
        PlacedDigit(
            value=value,
            instance=int(rng.choice(_instances_by_digit(pool)[value])),
            row=cells[cell][0],
            column=cells[cell][1],
        )
        for cell, value in zip(chosen, values, strict=True)
    )
    return Scene(seed=seed, number=number, pool=pool, grid_rows=grid_rows, digits=digits)


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB picture of `scene.size`; the same scene gives the same pixels."""
    rng = np.random.default_rng([_DRAWING_STREAM, scene.seed, scene.number])
    width, height = scene.size
    alpha_HW = np.zeros((height, width), dtype=np.float32)
    for digit in scene.digits:
        top = scene.grid_rows.index(digit.row) * CELL_PX
        left = digit.column * CELL_PX
        alpha_HW[top : top + CELL_PX, left : left + CELL_PX] = _cell_alpha(rng, digit.instance)
    return _ink_on_paper(rng, alpha_HW)


@lru_cache(maxsize=1)
def _handwriting() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Ink of every instance (float32 [1797, 8, 8], 0..1) and its digit (int64 [1797])."""
    bunch = load_digits()
    return (bunch.images / 16.0).astype(np.float32), bunch.target


@lru_cache(maxsize=1)
def _held_out_mask() -> NDArray[np.bool_]:
    """Mask of held-out instances (bool [1797]), with the same share of each digit."""
    targets = _handwriting()[1]
    rng = np.random.default_rng(_SPLIT_SEED)
    held_out = np.zeros(len(targets), dtype=bool)
    for value in range(10):
        instances = np.flatnonzero(targets == value)
        held_out[rng.permutation(instances)[: round(len(instances) * _HELD_OUT_SHARE)]] = True
    return held_out


@lru_cache(maxsize=1)
def _test_mask() -> NDArray[np.bool_]:
    """Mask of the `test` pool (bool [1797]): half of the held-out instances of each digit."""
    targets, held_out = _handwriting()[1], _held_out_mask()
    rng = np.random.default_rng(_SECOND_SPLIT_SEED)
    test = np.zeros(len(targets), dtype=bool)
    extra = 0  # of two digits with an odd number of instances, the first gives one more to `test`, the second one less
    for value in range(10):
        instances = np.flatnonzero(held_out & (targets == value))
        half, odd = divmod(len(instances), 2)
        extra ^= odd
        test[rng.permutation(instances)[: half + (odd and extra)]] = True
    return test


@lru_cache(maxsize=4)
def _instances_by_digit(pool: Pool) -> tuple[NDArray[np.int64], ...]:
    """Instances of one pool, by digit."""
    instances = pool_instances(pool)
    targets = _handwriting()[1][instances]
    return tuple(instances[targets == value] for value in range(10))


def _choose_values(rng: np.random.Generator, how_many: int) -> list[int]:
    """Digits with more repeats than by chance; otherwise nearly every count would be 0 or 1."""
    values: list[int] = []
    while len(values) < how_many:
        repeat = bool(values) and rng.random() < _REPEAT_SHARE
        value = int(rng.choice(values)) if repeat else int(rng.integers(10))
        if values.count(value) < _MAX_REPEATS:
            values.append(value)
    return values


def _cell_alpha(rng: np.random.Generator, instance: int) -> NDArray[np.float32]:
    """Ink coverage of one cell, float32 [24, 24], 0..1: the digit, enlarged and at a random place."""
    size = int(rng.integers(14, 21))
    top, left = (int(offset) for offset in rng.integers(0, CELL_PX - size + 1, size=2))
    ink = Image.fromarray(_handwriting()[0][instance]).resize((size, size), Image.Resampling.BICUBIC)
    alpha_HW = np.zeros((CELL_PX, CELL_PX), dtype=np.float32)
    # Bicubic enlargement overshoots at the edge of a stroke.
    alpha_HW[top : top + size, left : left + size] = np.clip(np.asarray(ink), 0.0, 1.0)
    return alpha_HW * np.float32(rng.uniform(0.75, 1.0))


def _ink_on_paper(rng: np.random.Generator, alpha_HW: NDArray[np.float32]) -> Image.Image:
    """Blend dark ink into light paper, both slightly coloured, and add noise like that of a cheap camera."""
    paper = rng.uniform(215, 250) + rng.uniform(-12, 5, size=3)
    ink = rng.uniform(20, 80) + rng.uniform(-20, 20, size=3)
    noise = rng.normal(scale=rng.uniform(2, 9), size=(*alpha_HW.shape, 3))
    coverage = alpha_HW[..., None]
    pixels = paper * (1 - coverage) + ink * coverage + noise
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
