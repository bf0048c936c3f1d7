"""A model of transformers trained from two stores of its teacher, one of them with codecs of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.student_train.job import TrainJob
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train

COMPACT = {"attention": "sqrt_u8", "vision_top": "int8_channel", "vision_all": "int8_channel"}


def test_two_stores_of_one_teacher(
    family_job: Callable[..., TrainJob],
    family_store: Callable[..., Path],
    read_metrics: Callable[[Path], list[dict[str, Any]]],
) -> None:
    """Batches that mix codecs are decoded when they are made."""
    exact, compact = family_store("qwen3_vl"), family_store("qwen3_vl", **COMPACT)
    stores = (TrainStore(path=exact, name="exact"), TrainStore(path=compact, name="compact", weight=0.5))
    job = family_job("qwen3_vl", store=stores, steps=1, micro_batch=15)
    result = train(job)
    assert result.samples_by_source == {"exact": 10, "compact": 5}
    (line,) = read_metrics(job.train.output)
    assert line["by_source"].keys() == {"exact", "compact"}
    for term in job.train.losses.weights:
        exact_mean, compact_mean = (line["by_source"][name][term] for name in ("exact", "compact"))
        low, high = sorted([exact_mean, compact_mean])
        assert 0 < low <= line[term] * (1 + 1e-6) and line[term] <= high * (1 + 1e-6)
    assert sum(line["by_source"][name]["samples"] for name in ("exact", "compact")) == 15
    assert line["by_source"]["exact"]["loss"] == pytest.approx(
        sum(weight * line["by_source"]["exact"][term] for term, weight in job.train.losses.weights.items()), rel=1e-9
    )
