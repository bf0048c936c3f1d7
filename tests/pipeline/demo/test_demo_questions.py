"""The demo's questions: an independent reader of the question text must find the same answer in the cell labels."""

import itertools
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from alignkd.pipeline.demo.world.questions import (
    SCENE_QUESTION_TYPES,
    TEXT_QUESTION_TYPES,
    Question,
    conversation,
    scene_questions,
    scene_stream,
    text_questions,
)
from alignkd.pipeline.demo.world.scenes import make_scene
from alignkd.vlm.errors import InputError

NUM_SCENES = 1500
ROWS = {"top": 0, "middle": 1, "bottom": 2}
COLUMNS = {"left": 0, "center": 1, "right": 2}


def read_answer(text: str, grid: list[list[int]]) -> str:
    """Answers a question from its words and a 3 x 3 grid of digits (-1 where empty) alone."""
    present = [value for row in grid for value in row if value >= 0]
    numbers = [int(number) for number in re.findall(r"\d", text)]
    if "plus" in text or " and " in text:
        return str(numbers[0] + numbers[1])
    if " or " in text:
        return str(sorted(numbers)[1])
    if "largest" in text:
        return str(sorted(present)[-1])
    if "smallest" in text:
        return str(sorted(present)[0])
    if "sum" in text:
        name, kind = re.findall(r"(\w+) (row|column)", text)[0]
        line = grid[ROWS[name]] if kind == "row" else [row[COLUMNS[name]] for row in grid]
        return str(sum(max(value, 0) for value in line))
    if text.startswith("how many"):
        return str(Counter(present)[numbers[0]] if numbers else len(present))
    if numbers:
        return "yes" if numbers[0] in present else "no"
    row, column = _cell(re.findall(r"((?:top|middle|bottom)-\w+|center)", text)[0])
    return "none" if grid[row][column] < 0 else str(grid[row][column])


def _cell(name: str) -> tuple[int, int]:
    if name == "center":
        return 1, 1
    row, column = name.split("-")
    return ROWS[row], COLUMNS[column]


@pytest.fixture(scope="module")
def asked() -> list[tuple[Question, list[list[int]]]]:
    """Questions of many scenes and of as many text-only conversations, each with the grid it is about."""
    pairs = []
    for number in range(NUM_SCENES):
        scene = make_scene(7, number, "train")
        pairs += [(question, scene.labels_RC.tolist()) for question in scene_questions(scene, 6)]
        pairs += [(question, []) for question in text_questions(7, number, 2)]
    return pairs


@pytest.fixture(scope="module")
def answers(asked: list[tuple[Question, list[list[int]]]]) -> dict[str, Counter[str]]:
    """How often each answer occurs, by question type."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question, _ in asked:
        counts[question.question_type][question.answer] += 1
    return counts


def test_answers_are_right(asked: list[tuple[Question, list[list[int]]]]) -> None:
    wrong = [(question, grid) for question, grid in asked if read_answer(question.text, grid) != question.answer]
    assert not wrong[:3]


def test_questions_are_lower_case_and_every_wording_occurs(asked: list[tuple[Question, list[list[int]]]]) -> None:
    wordings: dict[str, set[str]] = defaultdict(set)
    for question, _ in asked:
        assert question.text == question.text.lower()
        assert question.text.endswith("?")
        wordings[question.question_type].add(re.sub(question.subject or "^$", "", question.text))
    assert set(wordings) == {*SCENE_QUESTION_TYPES, *TEXT_QUESTION_TYPES}
    assert all(len(texts) >= 3 for texts in wordings.values())


def test_two_row_scenes_are_never_asked_about_a_middle_row() -> None:
    scenes = [scene for number in range(600) if len((scene := make_scene(2, number, "train")).grid_rows) == 2]
    texts = [question.text for scene in scenes for question in scene_questions(scene, 6)]
    assert any("center column" in text for text in texts)
    assert not [text for text in texts if re.search(r"middle| center (digit)?\?|is center", text)]


@pytest.mark.parametrize(
    ("question_type", "answer", "low", "high"),
    [
        ("exists", "yes", 0.45, 0.55),
        ("count", "0", 0.28, 0.40),
        ("count", "1", 0.20, 0.40),
        ("count", "2", 0.12, 0.30),
        ("count", "3", 0.05, 0.20),
        ("count", "4", 0.01, 0.15),
        ("position", "none", 0.10, 0.20),
        ("sum", "0", 0.05, 0.20),
        ("total", "3", 0.20, 0.30),
        ("total", "6", 0.20, 0.30),
    ],
)
def test_answers_are_balanced(
    answers: dict[str, Counter[str]], question_type: str, answer: str, low: float, high: float
) -> None:
    assert low < answers[question_type][answer] / answers[question_type].total() < high


def test_no_type_can_be_guessed_blindly(answers: dict[str, Counter[str]]) -> None:
    guessed = {name: counts.most_common(1)[0][1] / counts.total() for name, counts in answers.items()}
    assert max(guessed.values()) < 0.55
    assert set(answers["count"]) == set("01234")
    assert set("0123456789") < set(answers["position"])


def test_a_conversation_never_asks_the_same_twice() -> None:
    for number in range(200):
        questions = scene_questions(make_scene(0, number, "train"), 6) + text_questions(0, number, 6)
        subjects = [(question.question_type, question.subject) for question in questions]
        assert len(set(subjects)) == len(subjects)


def test_conversations_have_one_to_the_asked_number_of_turns() -> None:
    turns = Counter(len(scene_questions(make_scene(0, number, "train"), 6)) for number in range(600))
    assert set(turns) == {1, 2, 3, 4, 5, 6}
    assert turns[1] < 0.25 * turns.total()
    assert all(len(scene_questions(make_scene(0, number, "train"), 1)) == 1 for number in range(20))


def test_conversation_has_the_form_of_llava() -> None:
    questions = scene_questions(make_scene(0, 3, "train"), 6)
    turns = conversation(questions, with_image=True)
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(questions)
    assert turns[0]["value"] == f"<image>\n{questions[0].text}"
    assert "".join(turn["value"] for turn in turns).count("<image>") == 1
    assert "<image>" not in conversation(questions, with_image=False)[0]["value"]


def test_stream_yields_consistent_scenes_again_and_again() -> None:
    once, again = (list(itertools.islice(scene_stream(5, "train"), 12)) for _ in range(2))
    for number, (item, same) in enumerate(zip(once, again, strict=True)):
        assert item.image.tobytes() == same.image.tobytes()
        assert item.conversation == same.conversation
        np.testing.assert_array_equal(item.labels_RC, make_scene(5, number, "train").labels_RC)
        for human, gpt in _pairs(item.conversation):
            assert read_answer(human.removeprefix("<image>\n"), item.labels_RC.tolist()) == gpt


@pytest.mark.parametrize("max_questions", [0, 7])
def test_unusable_number_of_questions_is_one_line(max_questions: int) -> None:
    with pytest.raises(InputError, match=f"expected 1 to 6, found {max_questions}") as caught:
        scene_questions(make_scene(0, 0, "train"), max_questions)
    assert "\n" not in str(caught.value)


def _pairs(turns: list[dict[str, str]]) -> list[tuple[str, str]]:
    values = [turn["value"] for turn in turns]
    return list(zip(values[::2], values[1::2], strict=True))
