"""Prompts, images and answers files are those of the original generators."""

import base64
import csv
import dataclasses
import errno
import json
import os
from io import StringIO
from pathlib import Path

import pytest
from golden_evaluations import GOLDEN, NAMES, copied, expected

from alignkd.evaluation.answers import answer_line, clean_text, read_answers
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.question import Question
from alignkd.evaluation.question_lines import check_images
from alignkd.vlm.errors import InputError

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TABLE = "mmbench_dev_en_20231003.tsv"
each_benchmark = pytest.mark.parametrize("name", NAMES)


def questions(name: str, folder: Path | None = None) -> list[Question]:
    return list(BENCHMARKS[name].questions(folder or GOLDEN / name / "data"))


@each_benchmark
def test_prompts(name: str) -> None:
    wanted = expected(name)
    found = questions(name)
    assert len(found) == len(wanted["items"])
    for question, item in zip(found, wanted["items"], strict=True):
        image = "" if question.image is None else "<image>\n"
        assert f"{SYSTEM} USER: {image}{question.turn} ASSISTANT:" == item["model_prompt"]
        assert question.prompt == item["answers_file_prompt"]
        assert question.id == item["question_id"]
        assert (question.image is None) == (item["image_given_to_clip"] is None)
        assert question.max_new_tokens == wanted["generate"]["max_new_tokens"]
        assert question.pads_image == (name != "sqa")


@each_benchmark
def test_answers_file_is_that_of_the_original(name: str) -> None:
    lines = [
        answer_line(
            question,
            clean_text(item["raw_output"]),
            answer_id=f"answer{number:04}",
            model_id="synthetic-model",
        )
        for number, (question, item) in enumerate(zip(questions(name), expected(name)["items"], strict=True), 1)
    ]
    assert "".join(lines) == (GOLDEN / name / "answers.jsonl").read_text(encoding="utf-8")


@each_benchmark
def test_images_are_those_of_the_questions(name: str) -> None:
    for question in questions(name):
        if isinstance(question.image, bytes):
            assert question.image[:4] in (b"\xff\xd8\xff\xe0", b"\x89PNG")
        elif question.image is not None:
            assert question.image.is_file()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mmbench"])
def test_missing_images_are_refused(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    image = next(question.image for question in questions(name, folder) if isinstance(question.image, Path))
    image.unlink()
    with pytest.raises(InputError, match=r"1 of \d+ images of the questions are missing"):
        questions(name, folder)


def rewritten(folder: Path, change: dict[int, dict[str, str]]) -> Path:
    """The folder of mmbench with other cells in some rows."""
    path = folder / TABLE
    rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines(keepends=True), delimiter="\t"))
    text = StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{**row, **change.get(int(row["index"]), {})} for row in rows])
    path.write_text(text.getvalue(), encoding="utf-8")
    return folder


def test_mmbench_rows_may_refer_to_the_image_of_another_row(tmp_path: Path) -> None:
    before = {question.id: question.image for question in questions("mmbench")}
    folder = rewritten(copied("mmbench", tmp_path), {1000003: {"image": "7"}})
    after = {question.id: question.image for question in questions("mmbench", folder)}
    assert after == {**before, 1000003: before[7]}
    assert after[1000003] is after[7]


@pytest.mark.parametrize("cell", ["999", "x", "", "1000003"])
def test_mmbench_rows_without_an_image_are_refused(cell: str, tmp_path: Path) -> None:
    folder = rewritten(copied("mmbench", tmp_path), {1000003: {"image": cell}})
    with pytest.raises(InputError, match="row 1000003 has no image"):
        questions("mmbench", folder)


def test_mmbench_images_that_are_not_base64_are_refused(tmp_path: Path) -> None:
    folder = rewritten(copied("mmbench", tmp_path), {3: {"image": "§" * 100}})
    with pytest.raises(InputError, match="image of row 3 is not base64"):
        questions("mmbench", folder)


def test_mmbench_images_may_be_long(tmp_path: Path) -> None:
    limit, image = csv.field_size_limit(), bytes(300_000)
    folder = rewritten(copied("mmbench", tmp_path), {3: {"image": base64.b64encode(image).decode()}})
    assert questions("mmbench", folder)[0].image == image
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("cells", "turn"),
    [
        ({"hint": "NaN"}, "What is shown?\nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
        ({"hint": "none"}, "What is shown?\nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
        ({"hint": "N/A"}, "What is shown?\nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
        ({"hint": "Look."}, "Look.\nWhat is shown?\nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
        ({"hint": " "}, " \nWhat is shown?\nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
        ({"B": "NONE"}, "What is shown?\nA. a dog"),
        ({"A": ""}, "What is shown?"),
        ({"C": "null"}, "What is shown?\nA. a dog\nB. a cat"),
        ({"C": "NULL."}, "What is shown?\nA. a dog\nB. a cat\nC. NULL.\nD. a cup"),
        ({"question": "a\r\nb\tc "}, "a\r\nb\tc \nA. a dog\nB. a cat\nC. a bus\nD. a cup"),
    ],
)
def test_mmbench_prompts_of_odd_cells(cells: dict[str, str], turn: str, tmp_path: Path) -> None:
    folder = copied("mmbench", tmp_path)
    with (folder / TABLE).open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))
    for column, cell in cells.items():
        rows[1][rows[0].index(column)] = cell
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows(rows)
    question = questions("mmbench", folder)[0]
    assert question.prompt == turn
    assert question.turn == turn + "\nAnswer with the option's letter from the given choices directly."
    letters = [line[0] for line in turn.splitlines() if line[1:3] == ". "]
    assert (question.fields["option_char"], question.fields["round_id"]) == (letters, 0)


def test_sqa_questions_lose_the_image_mark_and_outer_blanks(tmp_path: Path) -> None:
    folder = copied("sqa", tmp_path)
    path = folder / "llava_test_CQM-A.json"
    entries = json.loads(path.read_text())
    entries[0]["conversations"][0]["value"] = " What <image>?\nA. x\n<image>"
    path.write_text(json.dumps(entries))
    question = questions("sqa", folder)[0]
    suffix = "\nAnswer with the option's letter from the given choices directly."
    assert question.turn == f"What ?\nA. x{suffix}"
    assert question.prompt == f"<image>\nWhat ?\nA. x{suffix}"


def test_turns_of_question_lines_are_verbatim(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    path = folder / "llava_pope_test.jsonl"
    first, *rest = path.read_text().splitlines()
    line = {**json.loads(first), "text": "  Is it?  "}
    path.write_text("\n".join([json.dumps(line), "", *rest, "", ""]))
    found = questions("pope", folder)
    assert (found[0].turn, found[0].prompt, len(found)) == ("  Is it?  ", "  Is it?  ", len(rest) + 1)


def test_written_answers_are_read_back(tmp_path: Path) -> None:
    question = dataclasses.replace(questions("mmbench")[0], prompt="p\u2028\n")
    line = answer_line(question, 'x\u2028"\n\ud800é', answer_id="1", model_id="m")
    path = tmp_path / "answers.jsonl"
    path.write_text(line * 2)
    first, second = read_answers(path)
    assert (first.text, first.prompt, first.question_id) == ('x\u2028"\n\ud800é', "p\u2028\n", 3)
    assert first.fields == {**question.fields, "answer_id": "1", "model_id": "m", "metadata": {}}
    assert first == second


def test_images_in_a_folder_without_permission_are_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied("gqa", tmp_path)

    def denied(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(InputError, match="Permission denied") as error:
        check_images([folder / "images" / "n001.jpg"])
    assert "missing" not in str(error.value)


@pytest.mark.parametrize("question_id", [True, None, 1.5, [], {}])
@pytest.mark.parametrize("name", ["sqa", "gqa"])
def test_ids_that_are_neither_texts_nor_integers(name: str, question_id: object, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    if name == "sqa":
        path = folder / "llava_test_CQM-A.json"
        entries = json.loads(path.read_text())
        path.write_text(json.dumps([entries[0] | {"id": question_id}, *entries[1:]]))
    else:
        path = folder / "llava_gqa_testdev_balanced.jsonl"
        first, *rest = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps(json.loads(first) | {"question_id": question_id}), *rest]))
    with pytest.raises(InputError, match="not a question"):
        BENCHMARKS[name].questions(folder)


def test_lines_without_the_name_of_an_image(tmp_path: Path) -> None:
    folder = copied("gqa", tmp_path)
    path = folder / "llava_gqa_testdev_balanced.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | {"image": ""}), *rest]))
    with pytest.raises(InputError, match="line 1: not a question"):
        BENCHMARKS["gqa"].questions(folder)
