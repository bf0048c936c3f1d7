"""Answers files: what a line must have, and errors that name file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkd.evaluation.answers import answer_line, clean_text, read_answers
from alignkd.evaluation.listed import quoted, some
from alignkd.evaluation.question import Question
from alignkd.vlm.errors import InputError

GOOD = json.dumps({"question_id": "1", "prompt": "p", "text": "t"})


def answers_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "answers.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not a JSON object"),
        (GOOD[:-3], "not a JSON object"),
        (GOOD + GOOD, "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("[]", "list instead of a JSON object"),
        ('"x"', "str instead of a JSON object"),
        ("{}", "`question_id` is None"),
        ('{"question_id": 1}', "`text` is None"),
        ('{"question_id": true, "text": ""}', "`question_id` is True"),
        ('{"question_id": 1.5, "text": ""}', "`question_id` is 1.5"),
        ('{"question_id": 1, "text": 2}', "`text` is 2"),
        ('{"question_id": 1, "text": "", "prompt": []}', "`prompt` is []"),
    ],
)
def test_bad_lines(line: str, said: str, tmp_path: Path) -> None:
    path = answers_file(tmp_path, f"{GOOD}\n\n{line}\n")
    with pytest.raises(InputError) as error:
        read_answers(path)
    assert str(error.value).startswith(f"{path}: line 3: ") and said in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "said"),
    [("", "the file is empty"), (" \n\n", "the file is empty"), (b"\xff\xfe", "not a text in UTF-8")],
)
def test_bad_files(content: str | bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_answers(answers_file(tmp_path, content))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_answers(path)


def test_lines_end_at_line_ends_only(tmp_path: Path) -> None:
    """As Python iterates over a text file; `str.splitlines` would also end a line at U+2028 or a form feed."""
    texts = ["a\u2028b", "c\x85d", "e\u2029f"]
    lines = [json.dumps({"question_id": 1, "text": text}, ensure_ascii=False) for text in texts]
    path = answers_file(tmp_path, "\ufeff" + "\r\n".join(lines))
    assert [answer.text for answer in read_answers(path)] == texts


def test_answers_know_their_place(tmp_path: Path) -> None:
    path = answers_file(tmp_path, f"\n{GOOD}\n")
    (answer,) = read_answers(path)
    assert (answer.place, answer.prompt, answer.question_id) == (f"{path}: line 2", "p", "1")


texts = st.text()


@given(
    text=texts,
    prompt=texts,
    question_id=texts | st.integers(),
    fields=st.dictionaries(st.sampled_from(["round_id", "options"]), texts),
)
def test_lines_are_read_back(
    text: str, prompt: str, question_id: str | int, fields: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    question = Question(id=question_id, turn="", prompt=prompt, image=None, fields=fields)
    line = answer_line(question, text, answer_id="a", model_id="m")
    (answer,) = read_answers(answers_file(tmp_path_factory.getbasetemp(), line))
    assert (answer.question_id, answer.prompt, answer.text) == (question_id, prompt, text)
    assert answer.fields == {**fields, "answer_id": "a", "model_id": "m", "metadata": {}}
    assert line.count("\n") == 1 and line.isascii()


@given(texts)
def test_clean_text_has_no_outer_blanks(text: str) -> None:
    assert clean_text(text) == clean_text(text).strip()
    assert clean_text(f" {clean_text(text)}</s>\n") == clean_text(text)


def test_long_lists_of_ids_are_cut() -> None:
    assert some([1, 2, 3]) == "1, 2, 3"
    assert some([("a", "b"), 2, 3, 4]) == "a: b, 2, 3 and 1 more"
    assert quoted("a\n" * 40) == repr("a\n" * 40)
    assert quoted("a" * 81) == repr("a" * 80 + "...")
