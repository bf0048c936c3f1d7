"""`losses.attention_layers`: which layers of the student are compared with which of the teacher."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from alignkd.student_train.errors import TrainError
from alignkd.student_train.objective.attention.match import LayerPair
from alignkd.vlm.attention.layer_choice import checked_choice, chosen_layers, shown_layers
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import ModelConfig
from alignkd.vlm.settings import COMPLETE, described

KEY = "losses.attention_layers"
MORE_STORED = "dump again with more layers (store.attention.layers)"
FIRST_STORED = "dump again with the first layer (store.attention.first_layer)"
DEEPER_STEM = "write a deeper stem (`alignkd stem extract CONFIG --out FILE --depth N`) and set train.stem to it"
EXAMPLES = "expected layers of the student with those of the teacher, such as {0: 0, 1: 1}, or a band such as 30%-70%"


def _checked(value: Any) -> Any:
    """Refuse what is neither a mapping of layers nor a band, in one line; keys may be texts, as in JSON."""
    if isinstance(value, str):
        return checked_choice(value)
    if not isinstance(value, Mapping) or not value:
        found = "an empty mapping" if isinstance(value, Mapping) else described(value)
        raise _complete(f"{EXAMPLES}, found {found}")
    return {_number(student): _teacher_layers(student, teacher) for student, teacher in value.items()}


def _number(value: Any) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or value < 0:
        raise _complete(f"{EXAMPLES}, found {described(value)} for a layer")
    return value


def _teacher_layers(student: Any, teacher: Any) -> tuple[int, ...]:
    """One layer, or a list whose mean is taken."""
    layers = tuple(map(_number, teacher)) if isinstance(teacher, list | tuple) else (_number(teacher),)
    if not layers or list(layers) != sorted(set(layers)):
        raise _complete(
            f"layer {student} of the student has the teacher's layers {list(layers)}, expected rising numbers"
        )
    return layers


def _complete(problem: str) -> PydanticCustomError:
    return PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})


LayerMap = Annotated[
    dict[int, tuple[int, ...]] | str,
    BeforeValidator(_checked),
    Field(title="mapping of layers, or a band such as `30%-70%`"),
]


def layer_pairs(
    choice: Mapping[int, tuple[int, ...]] | str | None,
    student: ModelConfig,
    teacher: Sequence[int],
    *,
    first: int = 0,
    of_stem: bool = False,
) -> tuple[LayerPair, ...]:
    """The pairs of layers that a choice means, in rising numbers of the student's layers.

    None is the first layer that has attention, of both (Align-KD). In a band, the student's k layers of it are compared
    with the m available layers of the teacher as in CompoDistill (arXiv 2510.12184): the i-th with the mean of the
    teacher's layers i to i + m - k, so that neighbouring groups overlap and all layers are used.

    Args:
        teacher: the teacher's layers of which there is attention, rising.
        first: the teacher's first layer that has attention, whether it is among `teacher` or not.
        of_stem: whether the depth of a stem decides which these are; the message then asks for a deeper one.

    Raises:
        TrainError: a layer that does not exist, has no attention or is not available; or fewer layers of the teacher
            than of the student in a band.
    """
    own, more = (
        compared_layers(choice, student),
        DEEPER_STEM if of_stem else FIRST_STORED if choice is None else MORE_STORED,
    )
    pairs: Mapping[int, Sequence[int]]
    if choice is None:
        pairs = {own[0]: (first,)}
    elif isinstance(choice, str):
        pairs = _band(choice, own, teacher, more)
    else:
        pairs = {number: choice[number] for number in own}
    for number, layers in pairs.items():
        if missing := [layer for layer in layers if layer not in teacher]:
            found = (
                f"attention of the teacher's layers {shown_layers(teacher)} only" if teacher else "attention of none"
            )
            unset = " if it is not set" if choice is None else ""
            raise TrainError(
                f"{KEY}: layer {number} of the student is compared with the teacher's layer {missing[0]}{unset}, but "
                f"there is {found}; {'choose among them, or ' if teacher else ''}{more}"
            )
    return tuple(LayerPair(student=number, teacher=tuple(layers)) for number, layers in pairs.items())


def compared_layers(choice: Mapping[int, tuple[int, ...]] | str | None, student: ModelConfig) -> tuple[int, ...]:
    """The student's layers of a choice, rising, whatever there is of the teacher.

    Raises:
        TrainError: a layer that does not exist or has no attention.
    """
    if choice is None:
        return (student.attention_layer,)
    return _of_student(choice if isinstance(choice, str) else tuple(sorted(choice)), student)


def compared_teacher_layers(
    choice: Mapping[int, tuple[int, ...]] | str | None, available: Sequence[int]
) -> tuple[int, ...]:
    """The teacher's layers that a choice compares with, rising, whatever the student.

    Args:
        available: the teacher's layers of which there is attention, rising. A band takes all of them.
    """
    if isinstance(choice, str):
        return tuple(available)
    return (
        tuple(available[:1]) if choice is None else tuple(sorted({layer for one in choice.values() for layer in one}))
    )


def number_of_pairs(choice: Mapping[int, tuple[int, ...]] | str | None, num_layers: int) -> int:
    """How many layers of a student with `num_layers` layers a choice compares, if all of them have attention."""
    if isinstance(choice, str):
        every = range(num_layers)
        return len(chosen_layers(choice, num_layers=num_layers, attention_layers=every, key=f"{KEY} of the student"))
    return 1 if choice is None else len(choice)


def _of_student(choice: tuple[int, ...] | str, student: ModelConfig) -> tuple[int, ...]:
    try:
        return chosen_layers(
            choice,
            num_layers=student.num_layers,
            attention_layers=student.attention_layers,
            key=f"{KEY} of the student",
        )
    except InputError as error:
        raise TrainError(str(error)) from error


def _band(choice: str, student: Sequence[int], teacher: Sequence[int], more: str) -> dict[int, Sequence[int]]:
    group = len(teacher) - len(student) + 1
    if group < 1:
        raise TrainError(
            f"{KEY}: the band {choice} holds {len(student)} layers of the student, more than the {len(teacher)} of the "
            f"teacher of which there is attention ({shown_layers(teacher)}); choose a narrower band, name the pairs of "
            f"layers, or {more}"
        )
    return {number: teacher[place : place + group] for place, number in enumerate(student)}
