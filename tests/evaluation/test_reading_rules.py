"""The rules by which answers are read, one case for each, with what a more lenient rule would give."""

import itertools

import pytest

from alignkd.evaluation.answers import clean_text
from alignkd.evaluation.benchmarks.gqa import reading as gqa
from alignkd.evaluation.benchmarks.mmbench import reading as mmbench
from alignkd.evaluation.benchmarks.mmbench.cells import through_xlsx
from alignkd.evaluation.benchmarks.mme import reading as mme
from alignkd.evaluation.benchmarks.pope import reading as pope
from alignkd.evaluation.benchmarks.sqa import reading as sqa
from alignkd.evaluation.benchmarks.textvqa.prompt import question_of
from alignkd.evaluation.benchmarks.textvqa.reading import normalise
from alignkd.evaluation.benchmarks.textvqa.score import agreement

OPTIONS = {"A": "dog", "B": "Cat", "C": "a cat box", "D": "nan"}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (" left\n", "left"),
        ("left</s>", "left"),
        ("left</s></s>", "left</s>"),
        ("left </s> ", "left"),
        ("</s>left", "</s>left"),
    ],
)
def test_one_end_mark_is_cut(raw: str, text: str) -> None:
    assert clean_text(raw) == text


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Yes.", "yes"),
        ("yes..", "yes"),
        (".yes", ".yes"),
        ("hat!", "hat!"),
        ("yes,", "yes,"),
        ("The table", "the table"),
        ("two", "two"),
        (" yes", " yes"),
        ("yes. ", "yes. "),
    ],
)
def test_gqa(text: str, reading: str) -> None:
    assert gqa.read_answer(text) == reading


@pytest.mark.parametrize("text", ["No", "no", "not", "it is not", "No, it is", "yes, no", "no. yes", "No,"])
def test_pope_no(text: str) -> None:
    assert not pope.is_yes(text)


@pytest.mark.parametrize(
    "text", ["NO", "Not", "nope", "none", "No!", "No;", "", "No\nx", "yes. no", "yes.no", "no\tyes"]
)
def test_pope_yes(text: str) -> None:
    assert pope.is_yes(text)


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("Yes", "yes"),
        ("know", "no"),
        ("not sure", "no"),
        ("'No'", "no"),
        ("yno", "no"),
        ("eyes", "yes"),
        ("Noyes", "no"),
        ("yesno", "yes"),
        ("  no", "no"),
        ("   no", None),
        (" yes", "yes"),
        ("**Yes**", None),
        ("Y", None),
        ("", None),
        ("No\nit is not", "no"),
        ("n\no", None),
        ("\tyes", "yes"),
        ("n\to", None),
        ("n\ro", None),
        ("İİno", None),  # lower case has more characters
    ],
)
def test_mme(text: str, reading: str | None) -> None:
    assert mme.read_answer(text) == reading


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", None),
        ("B.", None),
        ("B. x", "B"),
        ("B.x", None),
        ("B: x", None),
        ("F", None),
        ("F. x", None),
        ("x B. x", None),
        ("The answer is B.", "B"),
        ("The answer is B", None),
        ("The answer is B\n", None),
        ("The answer is Basalt", "B"),
        ("the answer is B.", None),
        ("The answer is F.", "F"),
        ("The answer is A. The answer is B.", None),
        ("The answer is A. The answer is A.", None),
        ("A. x The answer is B.", "A"),
        ("", None),
        ("(B)", None),
    ],
)
def test_sqa(text: str, letter: str | None) -> None:
    assert sqa.read_letter(text) == letter


def test_sqa_letter_must_be_a_choice() -> None:
    assert [sqa.read_choice("C", count) for count in (2, 3)] == [-1, 2]
    assert sqa.read_choice("The answer is F.", 5) == -1


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("E", "E"),
        ("F", None),
        ("b", None),
        ("it is B", "B"),
        ("A", "A"),
        ("A it is", "A"),
        ("A it is so", None),
        ("A man has a dog", "A"),
        ("so A it is A.", "A"),
        ("B it is so", "B"),
        ("A B", None),
        ("A B C.", "C"),
        ("B E", None),
        ("B. C.", None),
        ("B. C,", "B"),
        ("B, C.", "C"),
        ("(B) or C).", "C"),
        ("dog", "A"),
        ("DOG!", "A"),
        ("cat", "B"),
        ("a cat box", None),
        ("cat dog", None),
        ("nan", "D"),
        ("", "D"),
        ("None", "D"),
        ("=B", "D"),
        ("= B", "D"),
        ("#N/A", "D"),
        ("none", None),
        ("x", None),
    ],
)
def test_mmbench(text: str, letter: str | None) -> None:
    assert mmbench.read_letter(text, OPTIONS) == letter


# what pandas 2.0.3 and openpyxl 3.1.2 read back as missing
EMPTY_IN_XLSX = (
    "|nan|NaN|-nan|-NaN|None|null|NULL|NA|N/A|n/a|<NA>|#NA|#N/A|#N/A N/A|1.#IND|-1.#IND|1.#QNAN|-1.#QNAN"
    "|#NULL!|#DIV/0!|#VALUE!|#REF!|#NAME?|#NUM!|=A|= A|=="
).split("|")


@pytest.mark.parametrize("text", EMPTY_IN_XLSX)
def test_mmbench_texts_that_an_xlsx_file_loses(text: str) -> None:
    assert through_xlsx(text) == "nan"
    assert mmbench.read_letter(text, OPTIONS) == "D"


@pytest.mark.parametrize("text", ["=", " ", "none", "None.", "TRUE", "3", "+A", "'A", "A\nB", "#N/A."])
def test_mmbench_texts_that_an_xlsx_file_keeps(text: str) -> None:
    assert through_xlsx(text) == text


def test_mmbench_texts_are_cut_by_an_xlsx_file() -> None:
    assert through_xlsx("x" * 40_000) == "x" * 32_767
    assert mmbench.read_letter("x " * 20_000 + "B", {}) is None
    assert mmbench.read_letter("x " * 10_000 + "B", {}) == "B"


@pytest.mark.parametrize(
    "form", ["{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{})."]
)
def test_mmbench_forms(form: str) -> None:
    assert mmbench.read_letter(f"x {form.format('E')} y", {}) == "E"
    assert mmbench.read_letter(f"x {form.format('B')} {form.format('C')} y", {}) is None


def test_mmbench_forms_have_an_order() -> None:
    forms = ["{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{})."]
    for earlier, later in itertools.pairwise(forms):
        assert mmbench.read_letter(f"{later.format('C')} {earlier.format('B')}", {}) == "B"


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        ("." * 32 + "x", "x"),
        ("." * 33 + "x", ".x"),
        ("3.", "3"),
        (".5", ".5"),
        ("3.5.", "3.5"),
        ("McDonald's", "mcdonald 's"),
        ("10:08", "10:08"),
        ("$5 & 'x'", "$5 & 'x'"),
        ("a-b", "b"),
        ("c-d", "c d"),
        ("c-d - e", "cd e"),
        ("-c-d e", "c d e"),
        ("c-d e-", "c d e"),
        ("c-d- e", "cd e"),
        ("c-d-\te", "cd e"),
        ("c-d-\ne", "cd e"),
        (" -c-d", "c d"),
        ("c-d-\n", "c d"),
        ("1,000", "1000"),
        ("who?me", "whome"),
        ("Ten An THE none", "10 0"),
        ("Im dont", "im don't"),
        ("one\ntwo\tthree", "1 2 3"),
        ("-\nx", "x"),
        ("CAFÉ", "café"),
        ("cafe\u0301", "cafe\u0301"),
        ("A", ""),
        ("(A)", ""),
    ],
)
def test_textvqa(text: str, reading: str) -> None:
    assert normalise(text) == reading


@pytest.mark.parametrize(("count", "points"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_textvqa_agreement_is_a_mean_over_people(count: int, points: float) -> None:
    people = ["x"] * count + [str(number) for number in range(10 - count)]
    assert agreement("x", people) == pytest.approx(points, abs=1e-12)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("What Is It?\nReference OCR token: A, B\nAnswer.", "what is it?"),
        ("What Is It?\nReference OCR token: \nAnswer.", "what is it?"),
        ("Reference OCR token: A, B\nWhat?\nAnswer.", "what?"),
        ("What?\nAnswer.", "what?"),
        ("OCR tokens: A. Question: What\nis it? Short answer:", "what\nis it?"),
        ("What?\nReference OCR token: A\nB\nAnswer.", "what?"),
        ("Reference OCR token: A\nB\nWhat?\nAnswer.", "what?"),
        ("What?", None),
        ("What?\nx\nAnswer.", None),
        ("What?\nx\nReference OCR token: A\nAnswer.", None),
        ("OCR tokens: A. What? Short answer:", None),
    ],
)
def test_textvqa_question_of_a_prompt(prompt: str, question: str | None) -> None:
    assert question_of(prompt) == question
