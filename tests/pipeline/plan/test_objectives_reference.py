"""docs/objectives.md: its tables are those of the code, and name every term, divergence and preset."""

from pathlib import Path
from typing import get_args

import pytest

from alignkd.pipeline.plan.objectives.reference import tables, with_tables
from alignkd.pipeline.plan.objectives.sample_bytes import QUERIES, SUPERVISED, VISION_TOKENS, bytes_of, bytes_of_logits
from alignkd.pipeline.plan.objectives.term_notes import TERM_NOTES
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES
from alignkd.student_train.objective.presets import METHODS
from alignkd.student_train.objective.term import Preset
from alignkd.student_train.objective.terms import TERMS

PAGE = Path(__file__).parents[3] / "docs" / "objectives.md"


def test_the_page_has_the_tables_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page) == page, (
        "write them again: python -m alignkd.pipeline.plan.objectives.reference docs/objectives.md"
    )


def test_every_objective_is_there() -> None:
    found = tables()
    for name in (*DIVERGENCES, *METHODS, *(TERMS.keys() - {"logit"})):
        assert f"\n| `{name}` |" in found, name
    assert {*METHODS} == {*get_args(Preset)} - {"paper", "supervised"}
    assert {*TERM_NOTES} == TERMS.keys() - {"logit"}


def test_bytes_are_those_of_the_arithmetic_by_hand() -> None:
    """Rows, columns and bytes of a value; and what a row or a sample has beside them."""
    heads, width, vocabulary = 32, 4096, 32_000
    by_hand = {
        2 * QUERIES * heads * VISION_TOKENS: {"attention": "float16"},
        QUERIES * heads * (VISION_TOKENS + 2): {"attention": "sqrt_u8"},
        2 * VISION_TOKENS * width: {"vision_states": "bfloat16"},
        VISION_TOKENS * (VISION_TOKENS - 1): {"vision_relations": "float16"},
        2 * SUPERVISED * width: {"logits": {"kind": "hidden"}},
    }
    for size, store in by_hand.items():
        assert size <= bytes_of(store) <= size * 1.01 + 600, store
    assert 2 * SUPERVISED * vocabulary <= bytes_of({"logits": {"kind": "full", "dtype": "float16"}})
    kinds = bytes_of_logits()
    assert kinds["full"] > kinds["hidden"] > kinds["topk of 64"] > kinds["nucleus of 0.98"] > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_needs_the_targets_that_it_stores(name: str) -> None:
    always_there = (None, "logits", "preference")
    assert bool(METHODS[name].store) == any(TERMS[term].target not in always_there for term in weighted(name))


def weighted(name: str) -> list[str]:
    return [term for term, weight in METHODS[name].losses.items() if term in TERMS and weight]
