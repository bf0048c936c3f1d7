"""Statements that hold for any text and any order of answers."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from golden_evaluations import GOLDEN, answers_to
from hypothesis import given, settings
from hypothesis import strategies as st

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.benchmarks.gqa import reading as gqa
from alignkd.evaluation.benchmarks.mmbench import reading as mmbench
from alignkd.evaluation.benchmarks.mme import reading as mme
from alignkd.evaluation.benchmarks.pope import reading as pope
from alignkd.evaluation.benchmarks.pope.counts import Counts
from alignkd.evaluation.benchmarks.sqa import reading as sqa
from alignkd.evaluation.benchmarks.textvqa.prompt import question_of
from alignkd.evaluation.benchmarks.textvqa.reading import normalise
from alignkd.evaluation.benchmarks.textvqa.score import agreement

LETTERS = ["A", "B", "C", "D", "E"]
# texts that are likely to contain what the rules look for
parts = st.sampled_from(["A", "B", "E", ". ", ".", ",", ":", ")", "(", " ", "yes", "No", "not", "The answer is ", "\n"])
messy = st.text() | st.lists(parts, max_size=8).map("".join)
options = st.dictionaries(st.sampled_from(LETTERS[:4]), messy)


@given(messy, options, st.integers(1, 5))
def test_every_text_is_read(text: str, choices: dict[str, str], count: int) -> None:
    assert not gqa.read_answer(text).endswith(".")
    assert pope.is_yes(text) in (True, False)
    assert mme.read_answer(text) in ("yes", "no", None)
    assert -1 <= sqa.read_choice(text, count) < count
    assert mmbench.read_letter(text, choices) in (*LETTERS, None)
    assert normalise(text) == " ".join(normalise(text).split())
    assert question_of(text) is None or question_of(text) == (question_of(text) or "").lower()


@given(messy)
def test_words_after_the_first_sentence_do_not_matter_in_pope(text: str) -> None:
    sentence = text.split(".")[0]
    assert pope.is_yes(f"{sentence}. no not No") == pope.is_yes(sentence)


@given(messy, st.text())
def test_only_the_start_matters_in_mme(text: str, end: str) -> None:
    start = text.encode("ascii", "replace").decode().ljust(4)[:4]
    assert mme.read_answer(start + end) == mme.read_answer(start)


@given(st.lists(messy, min_size=10, max_size=10), messy)
def test_agreement_is_between_0_and_1_and_counts_people(people: list[str], answer: str) -> None:
    points = agreement(answer, people)
    assert 0 <= points <= 1
    assert (points > 0) == (answer in people)
    assert agreement(answer, people[::-1]) == pytest.approx(points)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_ratios_of_pope(pairs: list[tuple[bool, bool]]) -> None:
    counts = Counts.of([answer for answer, _ in pairs], [label for _, label in pairs])
    assert counts.tp + counts.fp + counts.tn + counts.fn == len(pairs)
    assert counts.f1 == pytest.approx(2 * counts.tp / max(1, 2 * counts.tp + counts.fp + counts.fn))


def totals(name: str, answers: Sequence[Answer]) -> dict[str, object]:
    return BENCHMARKS[name].score(Path(GOLDEN / name / "data"), answers).totals


@pytest.mark.parametrize("name", ["gqa", "sqa", "mmbench"])
@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_answers_does_not_matter(name: str, seed: int) -> None:
    answers = answers_to(name)
    shuffled = Random(seed).sample(answers, len(answers))
    assert totals(name, shuffled) == totals(name, answers)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_answers_changes_rounding_only_in_textvqa(seed: int) -> None:
    answers = answers_to("textvqa")
    shuffled = Random(seed).sample(answers, len(answers))
    assert totals("textvqa", shuffled)["accuracy"] == pytest.approx(totals("textvqa", answers)["accuracy"], abs=1e-9)


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_images_does_not_matter_in_mme(seed: int) -> None:
    answers = answers_to("mme")
    pairs = list(zip(answers[::2], answers[1::2], strict=True))
    shuffled = [answer for pair in Random(seed).sample(pairs, len(pairs)) for answer in pair]
    found, wanted = totals("mme", shuffled), totals("mme", answers)
    assert found["by_category"] == wanted["by_category"]
