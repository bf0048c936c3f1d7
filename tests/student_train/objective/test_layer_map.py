"""`losses.attention_layers`: which layers are compared, and what is refused in one line."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.attention.layer_map import layer_pairs, number_of_pairs
from alignkd.student_train.objective.settings import LossConfig
from alignkd.vlm.attention.layer_choice import chosen_layers


@dataclass
class Student:
    """The part of a model's configuration that decides about layers."""

    num_layers: int
    attention_layers: tuple[int, ...]

    @property
    def attention_layer(self) -> int:
        return self.attention_layers[0]


def pairs(choice: Any, student: Student, teacher: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    checked = LossConfig(attention_layers=choice).attention_layers
    return {pair.student: pair.teacher for pair in layer_pairs(checked, student, teacher, first=teacher[0])}  # type: ignore[arg-type]


WHOLE = Student(24, tuple(range(24)))
HYBRID = Student(8, (2, 5, 7))


def test_what_a_choice_means() -> None:
    assert pairs(None, WHOLE, (0, 1)) == {0: (0,)}
    assert pairs(None, HYBRID, (3, 9)) == {2: (3,)}
    assert pairs({"1": 1, 0: [0, 2]}, WHOLE, (0, 1, 2)) == {0: (0, 2), 1: (1,)}
    teacher = chosen_layers("30%-70%", num_layers=32, attention_layers=range(32), key="")
    found = pairs("30%-70%", WHOLE, teacher)
    assert list(found) == list(range(8, 17))
    assert found[8] == (10, 11, 12, 13, 14) and found[16] == (18, 19, 20, 21, 22)
    assert pairs("0%-100%", HYBRID, (4, 5, 6)) == {2: (4,), 5: (5,), 7: (6,)}


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 100))
def test_a_band_uses_every_layer_of_the_teacher(students: int, more: int, first: int) -> None:
    teacher = tuple(range(first, first + students + more))
    found = pairs("0%-100%", Student(students, tuple(range(students))), teacher)
    assert list(found) == list(range(students)) and number_of_pairs("0%-100%", students) == students
    assert {layer for layers in found.values() for layer in layers} == {*teacher}
    for place, layers in found.items():  # as CompoDistill's groups: equally long, each one layer further
        assert layers == teacher[place : place + more + 1]


@pytest.mark.parametrize(
    ("choice", "student", "message"),
    [
        ({0: 7}, WHOLE, "teacher's layer 7, but there is attention of the teacher's layers 0 to 2 only"),
        ({24: 0}, WHOLE, "of the student: decoder layer 24 does not exist, there are 24"),
        ({3: 0}, HYBRID, "of the student: decoder layer 3 has no attention"),
        ("0%-100%", WHOLE, r"holds 24 layers of the student, more than the 3 of the teacher .* \(0 to 2\)"),
        ("0%-10%", HYBRID, "no layer of the band 0%-10% of 8 decoder layers has attention"),
    ],
)
def test_layers_that_are_not_there(choice: Any, student: Student, message: str) -> None:
    with pytest.raises(TrainError, match=message) as error:
        pairs(choice, student, (0, 1, 2))
    assert "\n" not in str(error.value) and "losses.attention_layers" in str(error.value)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([0, 1], "expected layers of the student with those of the teacher, such as .*, found a list"),
        ({}, "found an empty mapping"),
        ({"first": 0}, "found the text 'first' for a layer"),
        ({0: -1}, "found the number -1 for a layer"),
        ({0: []}, r"layer 0 of the student has the teacher's layers \[\], expected rising numbers"),
        ({0: [2, 1]}, r"has the teacher's layers \[2, 1\], expected rising numbers"),
        ("70%-30%", "expected a band that rises"),
        ("middle", "or a band such as 30%-70%, found the text 'middle'"),
    ],
)
def test_what_is_no_choice(choice: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LossConfig(attention_layers=choice)


def test_a_choice_is_the_same_after_json() -> None:
    losses = LossConfig(attention_layers={0: 0, 1: [1, 2]})
    assert LossConfig(**json.loads(losses.model_dump_json())) == losses


def test_forms_that_have_no_meaning() -> None:
    with pytest.raises(ValidationError, match="attention_form 'cosine' compares whole maps"):
        LossConfig(attention_form="cosine", attention_row_weights="surprise")
    kl: dict[str, Any] = {"output": "out", "steps": 1, "losses": {"attention_form": "kl"}}
    frozen = {"adapter_learning_rate": 0}
    for refused in ({}, frozen, {"adapter_init": "grouped_heads"}):
        with pytest.raises(ValidationError, match="'adapter' makes of the teacher's attention what is no distribution"):
            TrainConfig(**kl, **refused)
    TrainConfig(**kl, **frozen, adapter_init="grouped_heads")
    for heads in ("grouped", "mean"):
        TrainConfig(**{**kl, "losses": {"attention_form": "kl", "attention_heads": heads}})


def test_the_weight_is_a_function_of_the_step() -> None:
    losses = LossConfig(attention=8.0, attention_decay=0.5)
    found = [losses.weights_at(step / 8)["attention"] for step in range(8)]
    assert found == pytest.approx([8.0, 6.8284, 4.0, 1.1716, 0, 0, 0, 0], abs=1e-4)
    assert all(losses.weights_at(step / 8)["logit"] == 1.0 for step in range(8))
    assert LossConfig().weights_at(1.0) == LossConfig().weights


def test_of_a_stem_the_next_step_is_a_deeper_one() -> None:
    student: Any = WHOLE
    for choice in ({0: (1,)}, "0%-100%"):
        with pytest.raises(TrainError, match=r"or write a deeper stem \(`alignkd stem extract CONFIG .* --depth N`\)"):
            layer_pairs(choice, student, (0,), of_stem=True)
        with pytest.raises(TrainError, match=r"or dump again with more layers"):
            layer_pairs(choice, student, (0,))


def test_unset_is_the_first_layer_and_no_other() -> None:
    student: Any = WHOLE
    assert layer_pairs(None, student, (3, 7), first=3)[0].teacher == (3,)
    with pytest.raises(
        TrainError, match=r"layer 0 .* the teacher's layer 0 if it is not set, but .* layers 10 to 22 only"
    ):
        layer_pairs(None, student, tuple(range(10, 23)))
    with pytest.raises(TrainError, match=r"attention of none; dump again with the first layer .*first_layer"):
        layer_pairs(None, student, ())
