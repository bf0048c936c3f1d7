"""The demo from the teacher's stem; on its data, with its trained teacher, the losses are those of stored targets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.demo import demo
from alignkd.pipeline.demo.models import TEACHER_CHECKPOINT, write_student
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.storage import StoreReader
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

STEPS = 6


def test_a_demo_of_a_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases_prepared: None) -> None:
    small = replace(demo.QUICK, num_scenes=20, num_eval_scenes=4, shard_size=32, steps=3, micro_batch=8)
    monkeypatch.setattr(demo, "QUICK", small)
    out = tmp_path / "out"
    report = demo.run_demo(out, quick=True, rows=["align_kd"], profile="stem")
    reader = StoreReader(out / "stores" / "tqv")
    assert reader.manifest.codecs.from_stem == ("attention", "vision_top", "vision_all")
    assert report["stores"]["tqv"]["attachment_bytes"] > 4 * 512 * 128 > 0
    assert "--profile stem" in (out / "report.md").read_text()
    lines = [json.loads(line) for line in (out / "students/align_kd/seed-0/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and all(line[term] > 0 for line in lines for term in LossConfig().weights)


def test_losses_on_the_demos_data_are_those_of_stored_targets(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", num_scenes=24, pool="train", seed=0, questions_per_scene=4)
    teacher = load_model(TEACHER_CHECKPOINT)
    write_student(tmp_path / "student", teacher=teacher, seed=0)

    def run(name: str, **store: Any) -> list[dict[str, Any]]:
        config = RunConfig.model_validate(
            {
                "data": {"conversations": str(data.conversations), "images": str(data.images)},
                "teacher": {"checkpoint": str(TEACHER_CHECKPOINT), "sanity": "off"},
                "student": {"checkpoint": str(tmp_path / "student")},
                "store": {"path": str(tmp_path / f"store-{name}"), **store},
                "train": {
                    "output": str(tmp_path / name), "steps": STEPS, "micro_batch": 6, "learning_rate": 1e-3,
                    "adapter_init": "grouped_heads", "losses": {"attention": 2e4},
                },
            }
        )  # fmt: skip
        dump(config.dump_job(), teacher)
        train(config.train_job())
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    stored = run("stored", attention="float32", vision_top="float32", vision_all="float32")
    stem = run("stem", profile="stem")
    assert len(stored) == len(stem) == STEPS
    for mine, other in zip(stem, stored, strict=True):
        for term in ("loss", *LossConfig().weights):
            assert mine[term] == pytest.approx(other[term], rel=1e-6), (mine["step"], term)
    assert all(abs(stem[0][term] / stem[-1][term] - 1) > 1e-2 for term in ("attention", "vision_all", "logit"))


def test_an_unknown_profile(alignkd_here: Callable[..., Any], tmp_path: Path) -> None:
    finished = alignkd_here("demo", "--profile", "tiny", "--out", tmp_path / "out")
    assert finished.returncode == 2 and "'exact', 'compact', 'stem'" in finished.stderr
