"""Runs over a few samples with no, one and several images, for tests that compare sources of targets."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.storage import StoreReader
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint

WriteConfig = Callable[..., Path]
Metrics = list[dict[str, Any]]
HIDDEN = {"kind": "hidden", "dtype": "float32"}
FULL = {"kind": "full", "dtype": "float32"}
STEPS = 2  # each sample once, the second half of them by a student that has moved
ALL = ("attention", "vision_top", "vision_all")
# no bias in the adapters: else it is nearly all of the attention loss at first, and hides what is compared here
TRAIN = {"steps": STEPS, "micro_batch": 3, "adapter_init": "grouped_heads"}
FROM_STEM = dict.fromkeys(ALL, "stem")


def entry(number: int, images: list[str], question: str, answer: str = "yes, it is") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": f"s{number}", **({"image": images} if images else {}), "conversations": turns}


ENTRIES = [
    entry(0, ["coffee.png", "chelsea.png"], "Is <image> like <image>?"),
    entry(1, [], "Name a color.", "green"),
    entry(2, ["rocket.jpg"], "<image>\nWhat is this?", "a rocket on its way to somewhere"),
    entry(3, ["chelsea.png", "rocket.jpg", "coffee.png"], "<image><image><image>\nAre these three?"),
    entry(4, ["coffee.png"], "<image>\nA cup, or two of them?", "one"),
    entry(5, [], "Count to three.", "one two three"),
]


def opened(golden: Path, who: str) -> MobileVLMCheckpoint:
    """The golden teacher or student."""
    return MobileVLMCheckpoint.open(golden / who, vision_config=golden / "clip")


_DUMPED: dict[str, tuple[tempfile.TemporaryDirectory[str], Path]] = {}


def dumped(config: Path) -> StoreReader:
    """The store of a configuration. What was dumped before by the same settings from the same data is copied."""
    job = load_run_config(config, "dump").dump_job()
    path = Path(job.store.path)
    settings = yaml.safe_load(config.read_text())
    data = Path(settings["data"].pop("conversations")).read_text()
    settings["store"].pop("path")
    key = json.dumps([data, *(settings[section] for section in ("data", "teacher", "store"))], sort_keys=True)
    if path.exists() or key not in _DUMPED:
        dump(job)
    if path.exists() and key not in _DUMPED:
        folder = tempfile.TemporaryDirectory()
        _DUMPED[key] = folder, shutil.copytree(path, Path(folder.name) / "store")
    elif not path.exists():
        shutil.copytree(_DUMPED[key][1], path)
    return StoreReader(path)


def trained(config: Path) -> Metrics:
    job = load_run_config(config, "train").train_job()
    train(job)
    return [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]


def assert_same_losses(found: Metrics, expected: Metrics, relative: float = 1e-6) -> None:
    assert len(found) == len(expected) == STEPS
    for mine, other in zip(found, expected, strict=True):
        for term in ("loss", "grad_norm", *LossConfig().weights):
            assert mine[term] == pytest.approx(other[term], rel=relative), (mine["step"], term, mine[term], other[term])
    # the agreement means something only if the student moved between the steps
    assert all(abs(found[0][term] / found[-1][term] - 1) > 1e-4 for term in ("attention", "vision_all", "logit"))
