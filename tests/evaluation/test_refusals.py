"""Data for which the original's number would be wrong without notice, or on which it fails, is refused in one line."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from golden_evaluations import GOLDEN, NAMES, answers_to, copied, differences, expected, scored

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.errors import AnswersError
from alignkd.evaluation.score import Score
from alignkd.vlm.errors import InputError

Entry = dict[str, Any]
GQA_QUESTION = {
    "isBalanced": True,
    "answer": "yes",
    "types": {"structural": "verify", "semantic": "attr"},
    "semantic": [],
    "question": "Is it?",
    "groups": {"global": None},
}
TEXTVQA_QUESTION = {"image_id": "a", "question": "What?"}
each_benchmark = pytest.mark.parametrize("name", NAMES)


def score_in(folder: Path, answers: Sequence[Answer] | None = None, *, as_original: bool = False) -> Score:
    """The score of a folder that is named as its benchmark."""
    name = folder.name
    return BENCHMARKS[name].score(folder, answers or answers_to(name), as_original=as_original)


def changed_lines(path: Path, change: Callable[[list[Entry]], list[Entry]]) -> None:
    lines = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def changed_json(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@each_benchmark
def test_answers_to_another_benchmark(name: str) -> None:
    other = answers_to("pope" if name != "pope" else "gqa")
    with pytest.raises(InputError) as error:
        BENCHMARKS[name].score(GOLDEN / name / "data", other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("as_original", [False, True])
@pytest.mark.parametrize("name", ["gqa", "sqa", "mmbench"])
def test_answers_to_other_questions_only(name: str, as_original: bool) -> None:
    answers = [replace(answer, question_id=f"x{answer.question_id}") for answer in answers_to(name)]
    with pytest.raises(AnswersError, match="no answer is to one of the"):
        BENCHMARKS[name].score(GOLDEN / name / "data", answers, as_original=as_original)


@each_benchmark
def test_one_answer_less_is_noticed(name: str) -> None:
    answers = answers_to(name)
    kept = [answer for answer in answers if answer.question_id != answers[3].question_id]
    with pytest.raises(AnswersError, match=r"questions without an answer: [12] of"):
        BENCHMARKS[name].score(GOLDEN / name / "data", kept)


@each_benchmark
def test_the_same_answer_twice_is_noticed(name: str) -> None:
    answers = answers_to(name)
    with pytest.raises(AnswersError, match="questions with several answers: 1"):
        BENCHMARKS[name].score(GOLDEN / name / "data", [*answers, answers[3]])


@pytest.mark.parametrize("name", ["textvqa", "mme", "pope"])
def test_unknown_ids_where_the_original_fails(name: str) -> None:
    answers = answers_to(name)
    stranger = replace(answers[0], question_id="OCR/x.png" if name == "mme" else 77)
    for as_original in (False, True):
        with pytest.raises(InputError):
            BENCHMARKS[name].score(GOLDEN / name / "data", [*answers, stranger], as_original=as_original)


@pytest.mark.parametrize("name", ["gqa", "sqa", "mmbench"])
def test_unknown_ids_that_the_original_ignores_are_counted(name: str) -> None:
    answers = answers_to(name)
    score = BENCHMARKS[name].score(GOLDEN / name / "data", [*answers, replace(answers[0], question_id="77")])
    assert score.headline_value == pytest.approx(expected(name)["headline"]["value"])
    assert any(note.startswith("answers to other questions, not scored: ") and "77" in note for note in score.notes)


@pytest.mark.parametrize("name", ["sqa", "textvqa", "mme"])
def test_benchmarks_that_read_the_prompt_need_it(name: str) -> None:
    first, *rest = answers_to(name)
    with pytest.raises(InputError, match="no `prompt`"):
        BENCHMARKS[name].score(GOLDEN / name / "data", [replace(first, prompt=None), *rest])


@pytest.mark.parametrize("name", ["gqa", "mmbench", "pope"])
def test_other_benchmarks_need_no_prompt(name: str) -> None:
    answers = [replace(answer, prompt=None) for answer in answers_to(name)]
    score = BENCHMARKS[name].score(GOLDEN / name / "data", answers)
    assert score.headline_value == pytest.approx(expected(name)["headline"]["value"])


def test_pope_annotation_of_another_release(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    shutil.rmtree(folder / "coco")
    shutil.copytree(GOLDEN / "pope" / "coco_longer", folder / "coco")
    with pytest.raises(AnswersError, match=r"category random: 11 labels for 10 answers; .*give --as-original"):
        score_in(folder)
    wanted, score = expected("pope")["variants"]["coco_longer"], score_in(folder, as_original=True)
    assert differences(score.headline_value, wanted["headline"]) == []
    assert differences(score.totals, wanted["totals"]) == []
    assert any("11 labels for 10 answers" in note for note in score.notes)


def test_pope_labels_of_other_images(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    path = folder / "coco" / "coco_pope_popular.json"
    changed_lines(path, lambda lines: [{**lines[0], "image": "other.jpg"}, *lines[1:]])
    with pytest.raises(AnswersError, match=r"category popular: label 1 is of image other\.jpg, answer 1"):
        score_in(folder)


@pytest.mark.parametrize(("others", "is_refused"), [(1, False), (2, True)])
def test_pope_questions_may_differ_in_a_few_spellings(others: int, is_refused: bool, tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    path = folder / "coco" / "coco_pope_popular.json"
    changed_lines(path, lambda lines: [{**one, "text": "in the imange?"} for one in lines[:others]] + lines[others:])
    if is_refused:
        with pytest.raises(AnswersError, match="2 of 10 labels are of another question on the same image"):
            score_in(folder)
    else:
        assert "category popular: questions with another text in the annotation: 1" in score_in(folder).notes


def test_pope_category_without_annotation(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    (folder / "coco" / "coco_pope_popular.json").unlink()
    with pytest.raises(InputError, match="no annotation of category 'popular'"):
        score_in(folder)


def test_pope_other_files_beside_the_annotation_are_ignored(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    (folder / "coco" / ".DS_Store").write_bytes(b"\0")
    assert score_in(folder).totals == scored("pope").totals


def test_pope_labels_other_than_yes_and_no(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    changed_lines(
        folder / "coco" / "coco_pope_popular.json", lambda lines: [*lines[:4], {**lines[4], "label": "maybe"}]
    )
    with pytest.raises(InputError, match="line 5: not an `image`, a `text` and a `label`"):
        score_in(folder)


def test_mme_pairs_are_made_within_a_category() -> None:
    answers, folder = answers_to("mme"), GOLDEN / "mme" / "data"
    by_category = sorted(answers, key=lambda answer: str(answer.question_id).split("/")[0])
    assert BENCHMARKS["mme"].score(folder, by_category).totals == scored("mme").totals
    with pytest.raises(AnswersError, match="consecutive answers to different images"):
        BENCHMARKS["mme"].score(folder, [*answers[::2], *answers[1::2]])


def test_mme_questions_that_the_annotation_does_not_have(tmp_path: Path) -> None:
    folder = copied("mme", tmp_path)
    text = folder / "images" / "OCR" / "0008.txt"
    text.write_text(text.read_text().replace("cafe", "bar"))
    with pytest.raises(InputError, match=r"llava_mme\.jsonl: .* has no such question on image OCR/0008\.png"):
        score_in(folder)


@pytest.mark.parametrize("line", ["Is it?", "Is it?\tmaybe", "Is it?\tYes\tNo"])
def test_mme_malformed_annotation(line: str, tmp_path: Path) -> None:
    folder = copied("mme", tmp_path)
    (folder / "images" / "OCR" / "0008.txt").write_text(line)
    with pytest.raises(InputError, match=r"0008\.txt: line 1: not a question, a tab, and Yes or No"):
        score_in(folder)


@pytest.mark.parametrize("index", [7, 1_000_007, 2_000_007, 1_000_044])
def test_mmbench_missing_rotations(index: int, tmp_path: Path) -> None:
    folder = copied("mmbench", tmp_path)
    path = folder / "mmbench_dev_en_20231003.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith(f"{index}\t")))
    answers = [answer for answer in answers_to("mmbench") if answer.question_id != index]
    with pytest.raises(InputError, match=r"mmbench_dev_en_20231003\.tsv: questions with missing rotations: 1 of 15"):
        score_in(folder, answers)
    assert any("missing rotations" in note for note in score_in(folder, answers, as_original=True).notes)


def test_mmbench_options_that_do_not_move_need_no_rotation(tmp_path: Path) -> None:
    """In 53 of the 1,176 questions of the published table the last option stays in its place."""
    folder = copied("mmbench", tmp_path)
    path = folder / "mmbench_dev_en_20231003.tsv"
    names = ["index", "question", "A", "B", "C", "D", "answer", "image"]
    rows = [["5", "Which?", "x", "y", "z", "all", "D", "i"]]
    rows += [
        ["1000005", "Which?", "y", "z", "x", "all", "D", "i"],
        ["2000005", "Which?", "z", "x", "y", "all", "D", "i"],
    ]
    answers = [Answer(question_id=int(row[0]), prompt=None, text="D") for row in rows]
    path.write_text("\n".join("\t".join(row) for row in (names, *rows)))
    assert score_in(folder, answers).headline_value == 100
    path.write_text("\n".join("\t".join(row) for row in (names, *rows[:2])))
    with pytest.raises(InputError, match="missing rotations"):
        score_in(folder, answers[:2])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("index\t", "number\t", "no column index"),
        ("\tanswer\t", "\treply\t", "no column answer"),
        ("\n7\t", "\n7x\t", "line 3: not a row of MMBench dev"),
        ("\n7\t", "\n3\t", "1 indices occur again"),
        ("\n7\t", "\nx\n7\t", "line 3: not a row of MMBench dev"),
        ("\tdev\n7", "\tdev\tx\n7", "line 2: not a row of MMBench dev"),
    ],
)
def test_mmbench_malformed_tables(old: str, new: str, said: str, tmp_path: Path) -> None:
    folder = copied("mmbench", tmp_path)
    path = folder / "mmbench_dev_en_20231003.tsv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=said):
        score_in(folder)


def test_textvqa_needs_ten_answers(tmp_path: Path) -> None:
    folder = copied("textvqa", tmp_path)
    changed_json(folder / "TextVQA_0.5.1_val.json", lambda values: values["data"][0]["answers"].pop())
    with pytest.raises(InputError, match="9 instead of 10 answers to 'what brand is the camera\\?'"):
        score_in(folder)


def test_textvqa_a_question_that_is_asked_twice_needs_two_answers(tmp_path: Path) -> None:
    folder, answers = copied("textvqa", tmp_path), answers_to("textvqa")
    changed_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", lambda lines: [*lines, lines[0]])
    with pytest.raises(AnswersError, match="questions without an answer: 1 of 38"):
        score_in(folder, answers)
    wanted = expected("textvqa")["variants"]["answers_duplicate.jsonl"]["headline"]
    assert score_in(folder, [*answers, answers[0]]).headline_value == pytest.approx(wanted)


def test_textvqa_prompts_of_an_unknown_form() -> None:
    first, *rest = answers_to("textvqa")
    with pytest.raises(InputError, match="line 1: no question in the prompt 'What brand is the camera\\?'"):
        BENCHMARKS["textvqa"].score(
            GOLDEN / "textvqa" / "data", [replace(first, prompt="What brand is the camera?"), *rest]
        )


def test_sqa_prompts_without_any_image() -> None:
    answers = [replace(answer, prompt="?") for answer in answers_to("sqa")]
    with pytest.raises(AnswersError, match="no prompt has <image>"):
        BENCHMARKS["sqa"].score(GOLDEN / "sqa" / "data", answers)


def test_sqa_decides_by_the_prompt_which_questions_have_an_image() -> None:
    first, *rest = answers_to("sqa")
    score = BENCHMARKS["sqa"].score(GOLDEN / "sqa" / "data", [replace(first, prompt="?"), *rest])
    assert score.totals["image_questions"] == expected("sqa")["totals"]["image_questions"] - 1
    assert "prompts with <image>: 25, questions with an image: 26" in score.notes


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("gqa", "testdev_balanced_questions.json", "[]"),
        ("gqa", "testdev_balanced_questions.json", "{}"),
        ("gqa", "testdev_balanced_questions.json", '{"1": {"isBalanced": true}}'),
        ("gqa", "testdev_balanced_questions.json", json.dumps({"1": GQA_QUESTION | {"answer": 3}})),
        ("gqa", "testdev_balanced_questions.json", json.dumps({"1": GQA_QUESTION | {"groups": {"global": [1]}}})),
        ("gqa", "testdev_balanced_questions.json", json.dumps({"1": GQA_QUESTION | {"types": {"structural": None}}})),
        ("sqa", "problems.json", "[]"),
        ("sqa", "problems.json", "{}"),
        ("sqa", "pid_splits.json", '{"test": []}'),
        ("sqa", "pid_splits.json", "{}"),
        ("sqa", "llava_test_CQM-A.json", "[]"),
        ("sqa", "llava_test_CQM-A.json", '[{"id": "1", "conversations": []}]'),
        ("textvqa", "TextVQA_0.5.1_val.json", "[]"),
        ("textvqa", "TextVQA_0.5.1_val.json", '{"data": []}'),
        ("textvqa", "TextVQA_0.5.1_val.json", '{"data": [{"image_id": 1}]}'),
        ("textvqa", "TextVQA_0.5.1_val.json", json.dumps({"data": [TEXTVQA_QUESTION | {"answers": [None] * 10}]})),
        ("textvqa", "llava_textvqa_val_v051_ocr.jsonl", '{"question_id": 1}'),
        ("pope", "llava_pope_test.jsonl", '{"question_id": 1, "image": 2, "text": "x"}'),
        ("mme", "llava_mme.jsonl", "x"),
    ],
)
def test_malformed_files(name: str, file: str, content: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(InputError) as error:
        score_in(folder)
        BENCHMARKS[name].questions(folder)
    assert file in str(error.value) and "\n" not in str(error.value)


@each_benchmark
def test_another_size_than_the_published_one_is_noted(name: str) -> None:
    assert sum("instead of the published" in note for note in scored(name).notes) == 1


def test_mme_other_folders_beside_the_categories_are_ignored(tmp_path: Path) -> None:
    folder = copied("mme", tmp_path)
    (folder / "images" / "eval_tool").mkdir()
    (folder / "images" / "eval_tool" / "readme.txt").write_text("no question")
    assert score_in(folder).totals == scored("mme").totals


def test_mme_text_files_are_found_without_the_folders_of_images(tmp_path: Path) -> None:
    folder = copied("mme", tmp_path)
    for images in (folder / "images").glob("*/images"):
        shutil.rmtree(images)
    assert score_in(folder).totals == scored("mme").totals


def test_sqa_answers_that_are_no_choice(tmp_path: Path) -> None:
    folder = copied("sqa", tmp_path)
    changed_json(folder / "problems.json", lambda values: values["11"].update(answer=3))
    with pytest.raises(InputError, match="the answer to 11 is none of its 3 choices"):
        score_in(folder)


def test_images_whose_name_no_file_can_have(tmp_path: Path) -> None:
    folder = copied("pope", tmp_path)
    image = "x" * 300 + ".jpg"
    changed_lines(folder / "llava_pope_test.jsonl", lambda lines: [{**lines[0], "image": image}, *lines[1:]])
    with pytest.raises(InputError, match=r"1 of \d+ images of the questions are missing \(x{80}\.\.\.\)"):
        BENCHMARKS["pope"].questions(folder)


def test_ids_in_messages_are_short_and_on_one_line() -> None:
    answers = answers_to("gqa")
    others = [replace(answers[0], question_id=other) for other in ("a\nb", "x" * 10_000)]
    score = BENCHMARKS["gqa"].score(GOLDEN / "gqa" / "data", [*answers, *others])
    assert score.notes[-1].endswith(f", a b, {'x' * 80}...)")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gqa", '`question_id` 10000001 of an answer is an integer, that of the question is the text "10000001"'),
        ("sqa", '`question_id` 11 of an answer is an integer, that of the question is the text "11"'),
        ("mmbench", "`question_id` 3 of an answer is a text, that of the question is the integer 3"),
        ("pope", "`question_id` 1 of an answer is a text, that of the question is the integer 1"),
    ],
)
def test_ids_of_another_type(name: str, said: str) -> None:
    """Both lists of ids look the same in the message."""
    swap = str if name in ("mmbench", "pope") else int
    whole = [replace(answer, question_id=swap(answer.question_id)) for answer in answers_to(name)]
    for answers in (whole, [whole[0], *answers_to(name)[1:]]):
        with pytest.raises(AnswersError) as error:
            BENCHMARKS[name].score(GOLDEN / name / "data", answers)
        assert said in str(error.value)


def test_textvqa_ids_of_another_type(tmp_path: Path) -> None:
    folder = copied("textvqa", tmp_path)
    (folder / "TextVQA_0.5.1_val.json").write_text(
        json.dumps({"data": [{"image_id": "7", "question": "What?", "answers": ["a"] * 10}]})
    )
    answer = Answer(question_id=7, prompt="What?\nAnswer the question using a single word or phrase.", text="a")
    with pytest.raises(AnswersError, match=r"7 of an answer is an integer, that of the question is the text \"7\""):
        score_in(folder, [answer])


@pytest.mark.parametrize("value", [float("inf"), float("nan"), None, [], 10**400])
def test_sqa_answers_that_are_no_index(value: object, tmp_path: Path) -> None:
    folder = copied("sqa", tmp_path)

    def change(problems: Any) -> None:
        problems["11"]["answer"] = value

    changed_json(folder / "problems.json", change)
    with pytest.raises(InputError, match="not those of ScienceQA"):
        score_in(folder)


def test_messages_cut_what_is_long(tmp_path: Path) -> None:
    long = "x" * 5000
    sqa, textvqa, pope = (copied(name, tmp_path) for name in ("sqa", "textvqa", "pope"))
    changed_json(sqa / "pid_splits.json", lambda splits: splits["test"].append(long))
    changed_json(textvqa / "TextVQA_0.5.1_val.json", lambda values: values["data"][0].update(question=long, answers=[]))
    changed_lines(pope / "llava_pope_test.jsonl", lambda lines: [lines[0] | {"category": long}, *lines[1:]])
    for folder in (sqa, textvqa, pope):
        with pytest.raises(InputError) as error:
            score_in(folder)
        assert len(str(error.value)) < 700


def test_mmbench_fields_whose_quotation_mark_is_not_closed(tmp_path: Path) -> None:
    """pandas fails; read to the end of the file, the field would contain all rows below it."""
    folder = copied("mmbench", tmp_path)
    path = folder / "mmbench_dev_en_20231003.tsv"
    header, *rows = path.read_text().splitlines()
    assert header.endswith("\tsplit")
    rows[-1] = '{}\t"{}'.format(*rows[-1].rsplit("\t", 1))
    path.write_text("\n".join([header, *rows, "a row that the field would contain"]))
    with pytest.raises(InputError, match="a quotation mark that opens a field is not closed"):
        score_in(folder)


def test_mmbench_indices_of_many_digits(tmp_path: Path) -> None:
    folder = copied("mmbench", tmp_path)
    path = folder / "mmbench_dev_en_20231003.tsv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "1" * 5000 + lines[1][lines[1].index("\t") :]]) + "\n")
    with pytest.raises(InputError, match="not a row of MMBench dev"):
        score_in(folder)
