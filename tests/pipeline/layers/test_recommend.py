"""Which layers are recommended."""

from typing import Any

import pytest
import yaml

from alignkd.pipeline.demo.recipes import TWO_LAYERS
from alignkd.pipeline.layers.recommend import compared_with, loss_lines, recommended_layers, store_lines
from alignkd.storage.tools.layers.figures import LayerFigures
from alignkd.student_train.objective.settings import LossConfig
from alignkd.teacher_dump.settings.store import StoreConfig


def figures(layer: int, informative: float | None, mass: float = 0.5, sharpness: float = 0.1) -> LayerFigures:
    return LayerFigures(
        layer=layer, queries=10, heads=2, vision_mass=mass, entropy=1.0, sharpness=sharpness,
        surprise=None if informative is None else 0.3, informative=informative, best_head=0, similarity=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # the demo's teacher
        ([figures(0, 0.39), figures(1, 0.88), figures(2, 0.98), figures(3, 0.97)], (0, 1)),
        ([figures(0, 0.9), figures(1, 0.95)], (0,)),
        # a hybrid: its first attention layer is 2
        ([figures(2, 0.1), figures(5, 0.2), figures(8, 0.9)], (2, 8)),
        # layer 1 hardly looks at the image
        ([figures(0, 0.1), figures(1, 1.0, mass=0.01), figures(2, 0.8)], (0, 2)),
        ([figures(0, 0.0), figures(1, 0.0)], (0,)),
        # no common grid: by sharpness
        ([figures(0, None, sharpness=0.1), figures(1, None, sharpness=0.3)], (0, 1)),
        ([figures(0, None, sharpness=0.3), figures(1, None, sharpness=0.1)], (0,)),
    ],
)
def test_the_first_layer_and_the_first_that_is_nearly_as_informative(layers: Any, expected: tuple[int, ...]) -> None:
    assert recommended_layers(layers, "tqv") == expected
    assert recommended_layers(layers, "vqv") == expected[-1:]


def test_the_lines_are_a_configuration() -> None:
    sections = yaml.safe_load("\n".join(store_lines((0, 3), "vqv", "sqrt_u8")))
    attention = StoreConfig(path="store", **sections["store"]).attention
    assert not isinstance(attention, str)
    assert attention.kinds_of_pairs() == ("vqv",) and attention.stored_codec == "sqrt_u8"
    assert list(attention.layers) == [0, 3]


@pytest.mark.parametrize(
    ("layers", "teacher", "student", "expected"),
    [
        ((0, 1), range(4), range(2), {0: 0, 1: 1}),
        ((0, 8), range(32), range(24), {0: 0, 8: 8}),
        ((0, 30), range(32), range(24), {0: 0, 23: 30}),
        ((0, 1), range(4), range(1), {0: 0}),
        ((2, 3), range(4), range(2), {0: 2, 1: 3}),
        # hybrids: the places among the attention layers count
        ((2, 8), (2, 5, 8), (1, 3, 5, 7), {1: 2, 5: 8}),
    ],
)
def test_the_students_layers(layers: Any, teacher: Any, student: Any, expected: dict[int, int]) -> None:
    assert compared_with(layers, teacher, student) == expected


def test_the_lines_of_the_losses_are_those_of_the_demo() -> None:
    losses = yaml.safe_load("\n".join(loss_lines({0: 0, 1: 1})))["train"]["losses"]
    assert LossConfig(**losses) == LossConfig(**TWO_LAYERS.losses)


def test_the_printed_losses_are_those_of_the_demos_row() -> None:
    lines = yaml.safe_load("\n".join(loss_lines({0: 0, 1: 1})))
    assert lines["train"]["losses"] == dict(TWO_LAYERS.losses)
