"""The objectives that `benchmarks/train.py --objectives` times: each is valid on one of two stores."""

from typing import Any

import pytest
from cases.objective_variants import HIDDEN, NUCLEUS, OTHER_DATA, SAME_WORK, objective_variants, store_of

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.student_train.objective.logits.divergence_table import DIVERGENCES
from alignkd.student_train.objective.presets import METHODS
from alignkd.student_train.objective.terms import TERMS

VARIANTS = objective_variants()


@pytest.mark.parametrize("name", VARIANTS)
def test_each_is_valid_on_its_store(name: str) -> None:
    variant = VARIANTS[name]
    sections: dict[str, Any] = {
        "data": {"conversations": "data.json"},
        "teacher": {"checkpoint": "teacher"},
        "student": {"checkpoint": "student"},
        "store": {"path": "store", **store_of(variant.logits)},
        "train": {"output": "out", "steps": 1, **variant.train},
    }
    config = RunConfig.model_validate(sections)
    assert config.train is not None and config.train.losses.weights.keys() - {"supervised"}
    assert config.store.logits.kind == variant.logits


def test_every_objective_is_among_them() -> None:
    assert VARIANTS.keys() >= {name for name, method in METHODS.items() if not method.pairs}
    new = {name for name, term in TERMS.items() if not term.presets} - {*OTHER_DATA}
    assert VARIANTS.keys() >= {f"{name} alone" for name in new}
    assert VARIANTS.keys() >= {f"logit {name}" for name in DIVERGENCES if not name.startswith(SAME_WORK)}
    assert {variant.logits for variant in VARIANTS.values()} == {NUCLEUS, HIDDEN}
