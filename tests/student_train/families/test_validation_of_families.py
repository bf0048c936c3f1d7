"""Validation of a student of transformers: samples with no, one and several images, with and without targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data

from alignkd.student_train.data.collate import collate
from alignkd.student_train.data.samples.held_out import held_out_positions
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.student_train.trainer import train

SHARE = 0.7


def first_line(output: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((output / "validation.jsonl").read_text().splitlines()[0])
    assert line["step"] == 0
    return line


def test_figures_are_those_of_the_samples_one_by_one(family_job: Callable[..., TrainJob]) -> None:
    job = family_job("qwen3_vl", steps=1, validation={"share": SHARE, "micro_batch": 4})
    train(job)
    line, samples = first_line(job.train.output), open_samples(job, job.open_student())
    held = held_out_positions(samples, SHARE)
    images = samples.reader.num_images[held]
    assert {*images.tolist()} >= {0, 1} and max(images) > 1, images
    student = build_student(job, job.open_student(), samples.reader)
    totals, counts = dict.fromkeys(LossConfig().weights, 0.0), dict.fromkeys(LossConfig().weights, 0)
    for position in held:
        batch = collate(
            [samples[int(position)]], targets={*job.train.losses.needed_targets.values()}, attention_pairs="tqv"
        )
        for name, term in student(batch).items():
            totals[name] += float(term.total.detach())
            counts[name] += term.count
    for name in LossConfig().weights:
        assert line[name] == pytest.approx(totals[name] / counts[name], rel=1e-5), name


def test_conversations_have_the_supervised_loss_of_the_store(
    family_job: Callable[..., TrainJob], family_store: Callable[..., Path], data: tiny_data.TinyData, tmp_path: Path
) -> None:
    store = family_store("qwen3_vl")
    found = []
    for name, section in (
        ("store", {"store": str(store)}),
        ("data", {"data": {"conversations": str(data.conversations), "images": str(data.images)}}),
    ):
        job = family_job("qwen3_vl", output=tmp_path / name, steps=1, preset="supervised", validation=section)
        train(job)
        found.append(first_line(job.train.output))
    assert found[0]["samples"] == found[1]["samples"] == len(data.entries) and found[1]["unusable"] == 0
    assert found[0]["supervised"] == pytest.approx(found[1]["supervised"], rel=1e-5)
