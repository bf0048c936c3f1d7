"""Pairs of answers with models of transformers: a student that is the teacher starts at ln 2, in any micro-batches."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data

from alignkd.storage import StoreReader
from alignkd.storage.read.pairs import Pairs
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.student_train.trained.settings import LoraSettings, TrainedConfig
from alignkd.student_train.trainer import train
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

LOSSES = {"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0, "supervised": 0, "preference": 1.0}


def pairs_of(data: tiny_data.TinyData, folder: Path) -> Path:
    """The entries with their last answers as the chosen ones: no, one and several images, and several turns."""
    found = []
    for number, entry in enumerate(tiny_data.ENTRIES):
        *before, last = entry["conversations"]
        found.append({**entry, "conversations": before, "chosen": last, "rejected": "no idea" + "!" * number})
    (folder / "pairs.json").write_text(json.dumps(found))
    return folder / "pairs.json"


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
def test_a_student_that_is_the_teacher_starts_at_ln_2(
    name: str, checkpoint: Callable[..., Path], data: tiny_data.TinyData, tmp_path: Path
) -> None:
    teacher, store = checkpoint(name, seed=3, hidden_size=64, heads=4), tmp_path / "store"
    kept = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "none"}}
    dump(
        DumpJob(
            data=(DataSet(path=pairs_of(data, tmp_path), images=data.images, pairs=True),),
            template=None,
            max_tokens=None,
            teacher=TeacherConfig(checkpoint=str(teacher), sanity="off", device="cpu"),
            store=StoreConfig(path=str(store), shard_size=6, **kept),
        )
    )
    pairs = Pairs.of(StoreReader(store))
    assert pairs.has_partner.all() and len(pairs.partner) == 2 * len(tiny_data.ENTRIES)
    lines: dict[str, list[dict[str, Any]]] = {}
    for case, limit in {"whole": {"micro_batch": 5}, "parts": {"micro_batch": 1, "global_batch": 5}}.items():
        config = TrainConfig(
            **{"output": tmp_path / case, "steps": 3, "learning_rate": 1e-2, "warmup_ratio": 0.0, "report_to": "none"},
            **{"preference": "dpo", "losses": LOSSES},
            **limit,
        )
        trained = TrainedConfig(trained="lora", lora=LoraSettings(rank=4))
        train(TrainJob(student=teacher, images=data.images, store=store, train=config, trained=trained))
        lines[case] = [json.loads(line) for line in (tmp_path / case / "metrics.jsonl").read_text().splitlines()]
    for first in (lines["whole"][0], lines["parts"][0]):
        assert first["preference"] == pytest.approx(math.log(2), abs=1e-4)
        assert first["preference_margin"] == pytest.approx(0, abs=1e-3)
    assert lines["whole"][-1]["preference"] < math.log(2) - 1e-3
    for one, other in zip(lines["whole"], lines["parts"], strict=True):
        assert one["preference"] == pytest.approx(other["preference"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
