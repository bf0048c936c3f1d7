"""The demo's files: what is written is complete, loads with the project's own loader, and is the same each time."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignkd.pipeline.demo.world.dataset import DatasetFiles, write_dataset
from alignkd.pipeline.demo.world.questions import SCENE_QUESTION_TYPES, TEXT_QUESTION_TYPES
from alignkd.pipeline.demo.world.scenes import make_scene
from alignkd.vlm.data.open import load_samples
from alignkd.vlm.errors import InputError

NUM_SCENES = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> DatasetFiles:
    """A training set of `NUM_SCENES` scenes."""
    out = tmp_path_factory.mktemp("demo")
    return write_dataset(out, num_scenes=NUM_SCENES, pool="train", seed=0, questions_per_scene=6)


@pytest.fixture(scope="module")
def entries(files: DatasetFiles) -> list[dict[str, Any]]:
    """The parsed JSON list."""
    loaded: list[dict[str, Any]] = json.loads(files.conversations.read_text(encoding="utf-8"))
    return loaded


def test_every_picture_is_named_once_and_has_the_scenes_size(
    files: DatasetFiles, entries: list[dict[str, Any]]
) -> None:
    named = [entry["image"] for entry in entries if "image" in entry]
    assert named[123] == "scenes/000123.png"
    written = [path.relative_to(files.images).as_posix() for path in files.images.rglob("*.png")]
    assert sorted(written) == named
    for number, image in enumerate(named):
        with Image.open(files.images / image) as picture:
            assert picture.mode == "RGB"
            assert picture.size == make_scene(0, number, "train").size
            assert picture.size in {(72, 72), (72, 48)}


def test_without_pictures_the_conversations_are_the_same(files: DatasetFiles, tmp_path: Path) -> None:
    alone = write_dataset(tmp_path, num_scenes=NUM_SCENES, pool="train", seed=0, questions_per_scene=6, pictures=False)
    assert alone.conversations.read_bytes() == files.conversations.read_bytes()
    assert not list(tmp_path.rglob("*.png"))


def test_the_projects_loader_finds_no_problem(files: DatasetFiles, entries: list[dict[str, Any]]) -> None:
    samples = load_samples(files.conversations)
    assert [sample.problem for sample in samples] == [None] * len(entries)
    assert [sample.images for sample in samples] == [(entry["image"],) if "image" in entry else () for entry in entries]
    assert len({sample.id for sample in samples}) == len(samples)


def test_each_turn_has_its_question_type(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        assert len(entry["conversations"]) == 2 * len(entry["question_types"])
        known = SCENE_QUESTION_TYPES if "image" in entry else TEXT_QUESTION_TYPES
        assert set(entry["question_types"]) <= set(known)
        assert entry["conversations"][0]["value"].startswith("<image>\n") == ("image" in entry)
    asked = {question_type for entry in entries for question_type in entry["question_types"]}
    assert asked == {*SCENE_QUESTION_TYPES, *TEXT_QUESTION_TYPES}


def test_one_conversation_in_twenty_has_no_picture(entries: list[dict[str, Any]]) -> None:
    text_only = sum("image" not in entry for entry in entries)
    assert len(entries) - text_only == NUM_SCENES
    assert 0.02 < text_only / len(entries) < 0.08


def test_the_same_arguments_give_the_same_bytes(files: DatasetFiles, tmp_path: Path) -> None:
    again = write_dataset(tmp_path, num_scenes=NUM_SCENES, pool="train", seed=0, questions_per_scene=6)
    assert again.conversations.read_bytes() == files.conversations.read_bytes()
    for path in files.images.rglob("*.png"):
        assert (again.images / path.relative_to(files.images)).read_bytes() == path.read_bytes()


def test_a_shorter_set_is_the_head_of_a_longer_one(entries: list[dict[str, Any]], tmp_path: Path) -> None:
    shorter = write_dataset(tmp_path, num_scenes=50, pool="train", seed=0, questions_per_scene=6)
    head = json.loads(shorter.conversations.read_text(encoding="utf-8"))
    assert head == entries[: len(head)]


def test_single_turns_ask_the_same_questions_one_by_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_scenes": 60, "pool": "held_out", "seed": 9, "questions_per_scene": 6}
    whole = json.loads(write_dataset(tmp_path / "whole", **options).conversations.read_text())
    single = json.loads(write_dataset(tmp_path / "single", **options, single_turn=True).conversations.read_text())
    assert {len(entry["conversations"]) for entry in single} == {2}
    assert all(entry["conversations"][0]["value"].startswith("<image>\n") == ("image" in entry) for entry in single)
    assert len({entry["id"] for entry in single}) == len(single)
    assert _asked(single) == _asked(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_scenes": 0}, "num_scenes: expected at least 1, found 0"),
        ({"seed": -1}, "seed: expected at least 0, found -1"),
        ({"pool": "validation"}, "expected train, development, test, held_out, found 'validation'"),
        ({"questions_per_scene": 9}, "questions_per_scene: expected 1 to 6, found 9"),
    ],
)
def test_unusable_arguments_are_one_line_and_write_nothing(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"num_scenes": 2, "pool": "train", "seed": 0, "questions_per_scene": 2, **change}
    with pytest.raises(InputError, match=message) as caught:
        write_dataset(tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def _asked(entries: list[dict[str, Any]]) -> list[tuple[str | None, str, str, str]]:
    """(image, question type, question, answer) of every turn, in order."""
    asked = []
    for entry in entries:
        values = [turn["value"].removeprefix("<image>\n") for turn in entry["conversations"]]
        turns = zip(entry["question_types"], values[::2], values[1::2], strict=True)
        asked += [(entry.get("image"), *turn) for turn in turns]
    return asked
