"""Hundreds of untidy answers are read as the original scripts read them."""

import json
from typing import Any

import pytest
from golden_evaluations import GOLDEN

from alignkd.evaluation.benchmarks.mmbench.reading import read_letter
from alignkd.evaluation.benchmarks.mme.reading import read_answer
from alignkd.evaluation.benchmarks.pope.reading import is_yes
from alignkd.evaluation.benchmarks.sqa.reading import read_choice
from alignkd.evaluation.benchmarks.textvqa.contractions import CONTRACTIONS
from alignkd.evaluation.benchmarks.textvqa.reading import normalise


def cases(file: str) -> list[dict[str, Any]]:
    values: list[dict[str, Any]] = json.loads((GOLDEN / file).read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("file", ["pope/readings.json", "mme/readings.json", "sqa/readings.json"])
def test_readings(file: str) -> None:
    read = {
        "pope/readings.json": lambda case: "yes" if is_yes(case["input"]) else "no",
        "mme/readings.json": lambda case: read_answer(case["input"]) or "other",
        "sqa/readings.json": lambda case: read_choice(case["input"], case["choices"]),
    }[file]
    wanted = [case.get("output", case.get("output_index")) for case in cases(file)]
    assert [read(case) for case in cases(file)] == wanted


def test_letters_of_mmbench() -> None:
    found = [read_letter(case["input"], case["options"]) for case in cases("mmbench/readings.json")]
    assert found == [case["output"] for case in cases("mmbench/readings.json")]


def test_normalised_answers_of_textvqa() -> None:
    found = [normalise(case["input"]) for case in cases("textvqa/normaliser.json")]
    assert found == [case["output"] for case in cases("textvqa/normaliser.json")]


def test_every_contraction_is_checked() -> None:
    checked = {case["input"] for case in cases("textvqa/normaliser.json")}
    assert set(CONTRACTIONS) <= checked
    assert all(short.replace("'", "") == full.replace("'", "") for short, full in CONTRACTIONS.items())
