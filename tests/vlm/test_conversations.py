"""Reading LLaVA-style data: what is usable, what is named."""

import json
from pathlib import Path

import pytest

from vlm.conversations import load_samples, read_image_bytes, sample_key
from vlm.errors import InputError, SampleError

GOOD = {"id": 7, "image": "a.png", "conversations": [{"from": "human", "value": "<image>\nhi"}]}


def write(tmp_path: Path, text: str, name: str = "data.json") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_json_and_json_lines_hold_the_same(tmp_path: Path) -> None:
    entries = [GOOD, {"conversations": [{"from": "HUMAN", "value": "hi\u2028there"}]}]
    as_list = load_samples(write(tmp_path, json.dumps(entries)))
    as_lines = load_samples(
        write(tmp_path, "\n\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries), "data.jsonl")
    )
    assert as_list == as_lines
    assert [(sample.id, sample.image, sample.problem) for sample in as_list] == [
        ("7", "a.png", None),
        ("#1", None, None),
    ]
    assert as_list[1].turns[0].speaker == "human"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("[{]", "data.json", r"data.json: broken JSON at line 1, column 3"),
        ('{"a": 1}\n{"a"', "data.jsonl", r"data.jsonl: broken JSON at line 2"),
        ('{"a": 1}', "data.json", r"a JSON dict, expected a list"),
    ],
)
def test_broken_files_are_named_with_line(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_samples(write(tmp_path, text, name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.json: cannot be read \(No such file"):
        load_samples(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("text", "not a JSON object"),
        ({**GOOD, "conversations": []}, "empty conversation"),
        ({**GOOD, "conversations": [{"value": "hi"}]}, "turn 0"),
        ({**GOOD, "conversations": [{"from": "human", "value": 3}]}, "turn 0"),
        ({**GOOD, "image": ["a.png", "b.png"]}, "one relative path"),
    ],
)
def test_malformed_entries_are_kept_with_their_problem(tmp_path: Path, entry: object, problem: str) -> None:
    samples = load_samples(write(tmp_path, json.dumps([entry, GOOD])))
    assert samples[0].problem is not None and problem in samples[0].problem
    assert samples[1].problem is None


def test_images_stay_inside_their_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("x")
    with pytest.raises(SampleError, match="leaves the image folder"):
        read_image_bytes(tmp_path / "images", "../secret")
    with pytest.raises(SampleError, match=r"a.png: image cannot be read"):
        read_image_bytes(tmp_path / "images", "a.png")


def test_the_key_follows_all_that_decides_the_input() -> None:
    conversation = [{"from": "human", "value": "hi"}]
    key = sample_key(conversation, "ab", "v1")
    others = [
        sample_key([{"from": "human", "value": "ho"}], "ab", "v1"),
        sample_key(conversation, "cd", "v1"),
        sample_key(conversation, None, "v1"),
        sample_key(conversation, "ab", "plain"),
    ]
    assert len({key, *others}) == 5 and key == sample_key(list(conversation), "ab", "v1")
