"""Dumps and trainings of the golden models with a few samples."""

import json
from pathlib import Path
from typing import Any

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "mobilevlm_v2_tiny"
IMAGES = GOLDEN.parent / "images"
RAW = {"attention": "float32", "vision_top": "float32", "vision_all": "float32", "logits": {"kind": "full"}}
STORES: dict[str, dict[str, Any]] = {
    "raw": RAW,
    "exact": {"profile": "exact"},
    "compact": {"profile": "compact"},
    "stem": {"profile": "stem"},
    "sampled": {"profile": "compact", "logits": {"kind": "sampled"}},
}


def samples() -> list[dict[str, Any]]:
    """The golden fine-tuning samples, three times, with and without images."""
    golden = json.loads((GOLDEN / "v1.json").read_text())
    return [{**sample, "id": f"{sample['id']}-{number}"} for number in range(3) for sample in golden]


def dump_job(folder: Path, kind: str, device: str, name: str | None = None) -> DumpJob:
    """A teacher pass over `samples` in float32, one sample per shard; the store is `folder/NAME`."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.json"
    data.write_text(json.dumps(samples()))
    return DumpJob(
        data=(DataSet(path=data, images=IMAGES),),
        template="v1",
        max_tokens=2048,
        teacher=TeacherConfig(
            checkpoint=str(GOLDEN / "teacher"),
            vision_config=GOLDEN / "clip",
            dtype="float32",
            batch=3,
            sanity="off",  # its weights are random
            device=device,
        ),
        store=StoreConfig(path=folder / (name or f"{kind}-{device}"), shard_size=1, **STORES[kind]),
    )


def train_job(store: Path, output: Path, *, dtype: Any = "float32", **settings: Any) -> TrainJob:
    """A training of the golden student."""
    given = {"micro_batch": 2, "learning_rate": 1e-3, "report_to": "none", "log_every": 1000, **settings}
    return TrainJob(
        student=GOLDEN / "student",
        vision_config=GOLDEN / "clip",
        images=IMAGES,
        store=store,
        dtype=dtype,
        train=TrainConfig(output=output, **given),
    )
