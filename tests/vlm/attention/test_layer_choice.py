"""Layers as a configuration writes them: bands, numbers, and what is refused."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from alignkd.vlm.attention.layer_choice import LayerChoice, chosen_layers, shown_layers
from alignkd.vlm.errors import InputError


class Section(BaseModel):
    layers: LayerChoice


def chosen(choice: Any, num_layers: int, attention_layers: Any = None) -> tuple[int, ...]:
    having = range(num_layers) if attention_layers is None else attention_layers
    return chosen_layers(Section(layers=choice).layers, num_layers=num_layers, attention_layers=having, key="layers")


def test_the_band_of_compodistill() -> None:
    assert chosen("30%-70%", 32) == tuple(range(10, 23))
    assert chosen("30% - 70%", 24) == tuple(range(8, 17))
    assert chosen("30%-70%", 32, [3, 7, 11, 15, 19, 23]) == (11, 15, 19)


@given(st.integers(1, 200), st.lists(st.integers(1, 99), unique=True).map(sorted))
def test_neighbouring_bands_hold_each_layer_once(num_layers: int, cuts: list[int]) -> None:
    edges = [0, *cuts, 100]
    found: list[int] = []
    for low, high in pairwise(edges):
        expected = [n for n in range(num_layers) if low / 100 <= n / num_layers < high / 100]
        try:
            layers = list(chosen(f"{low}%-{high}%", num_layers))
        except InputError:
            layers = []
        assert set(layers) ^ set(expected) <= {n for n in range(num_layers) if (100 * n) % num_layers == 0}
        found += layers
    assert found == list(range(num_layers))


@given(st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted))
def test_shown_layers_can_be_read_back(layers: list[int]) -> None:
    found: list[int] = []
    for part in shown_layers(layers).split(", "):
        first, _, last = part.partition(" to ")
        found += range(int(first), int(last or first) + 1)
    assert found == layers


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ([], "found an empty list"),
        ([1, 0], r"in rising order, found \[1, 0\]"),
        ([0, 0], r"each decoder layer once, .* found \[0, 0\]"),
        ([0, "1"], "found the text '1'"),
        ([True], "found true"),
        ([-1], "found the number -1"),
        ("middle", "a band such as 30%-70%, found the text 'middle'"),
        ("70%-30%", "rises within 0% and 100%, found 70%-30%"),
        ("10%-101%", "rises within 0% and 100%, found 10%-101%"),
        (3, "found the number 3"),
        (None, "found nothing"),
    ],
)
def test_what_is_no_choice_of_layers(choice: Any, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as error:
        Section(layers=choice)
    assert len(error.value.errors()) == 1


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ([0, 3], r"layers: decoder layer 0 has no attention; layers with attention are 3, 7$"),
        ([3, 9], r"layers: decoder layer 9 does not exist, there are 8; layers with attention are 3, 7$"),
        ("0%-30%", r"no layer of the band 0%-30% of 8 decoder layers has attention; layers with attention are 3, 7$"),
    ],
)
def test_layers_that_a_decoder_lacks(choice: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        chosen(choice, 8, [3, 7])
