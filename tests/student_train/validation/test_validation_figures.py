"""The figures of `validation.jsonl` are the losses of the samples, computed another way."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from alignkd.storage import StoreReader
from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.held_out import held_out_positions
from alignkd.student_train.data.training_set import TrainingSet
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.terms import TERMS
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
SHARE = 0.3


def validation_lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def one_by_one(job: TrainJob, samples: TrainingSet, positions: Any) -> dict[str, float | None]:
    """Mean of each term over the samples, each in a batch of its own, with gradients as in training."""
    student = build_student(job, job.open_student(), samples.reader)
    totals, counts = dict.fromkeys(TERMS, 0.0), dict.fromkeys(TERMS, 0)
    for position in positions:
        batch = collate(
            [samples[int(position)]], targets={*job.train.losses.needed_targets.values()}, attention_pairs="tqv"
        )
        for name, term in student(batch).items():
            totals[name] += float(term.total)
            counts[name] += term.count
    return {name: totals[name] / counts[name] if counts[name] else None for name in TERMS}


def assert_same_terms(line: dict[str, Any], expected: dict[str, float | None], weights: dict[str, float]) -> None:
    for name, value in expected.items():
        assert line[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name
    assert line["loss"] == pytest.approx(sum(weights[name] * (line[name] or 0) for name in weights), rel=1e-9)


def exported(job: TrainJob) -> TrainJob:
    """The job of a run that starts from the student and adapters of another."""
    config = job.train.model_copy(update={"adapters": job.train.output / "adapters.safetensors"})
    return TrainJob(**vars(job) | {"student": job.train.output / "student", "train": config})


def test_a_held_out_share(many_store: Path, make_job: MakeJob, read_metrics: Any) -> None:
    job = make_job(
        many_store, steps=None, epochs=2, micro_batch=1, validation={"share": SHARE, "every": 5, "export": "last"}
    )
    samples = open_samples(job, job.open_student())
    held = held_out_positions(samples, SHARE)
    assert 0 < len(held) < 10
    result = train(job)
    steps = 2 * (10 - len(held))
    assert (result.step, result.samples_seen) == (steps, steps)
    lines = validation_lines(job.train.output)
    assert [line["step"] for line in lines] == [0, *range(5, steps, 5), steps]
    assert {line["samples"] for line in lines} == {len(held)}
    weights = job.train.losses.weights
    assert_same_terms(lines[0], one_by_one(job, samples, held), weights)
    assert_same_terms(lines[-1], one_by_one(exported(job), samples, held), weights)
    assert lines[-1]["loss"] < lines[0]["loss"]
