"""Pairs of tiny checkpoints of families of transformers, and a store of each teacher with every target in float32."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_fixtures
import pytest
import tiny_data

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.job import TrainJob
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpJob
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet

EXACT = {
    "attention": "float32",
    "vision_top": "float32",
    "vision_all": "float32",
    "logits": {"kind": "full", "dtype": "float32"},
}
TEACHER = {"seed": 3, "hidden_size": 64, "heads": 4}
STUDENT = {"seed": 4, "hidden_size": 32, "heads": 2}


data, checkpoint = family_fixtures.data, family_fixtures.checkpoint


@pytest.fixture(scope="session")
def family_store(
    data: tiny_data.TinyData, checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`family_store("qwen3_vl", logits={"kind": "hidden"})`: the store of the family's teacher."""
    made: dict[str, Path] = {}

    def make(name: str, teacher: dict[str, Any] | None = None, **store: Any) -> Path:
        options = TEACHER | (teacher or {})
        key = f"{name} {options} {store}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("stores") / name
            dump(
                DumpJob(
                    data=(DataSet(path=data.conversations, images=data.images),),
                    template=None,
                    max_tokens=None,
                    teacher=TeacherConfig(checkpoint=str(checkpoint(name, **options)), sanity="off", device="cpu"),
                    store=StoreConfig(**{**EXACT, "path": str(made[key]), "shard_size": 4, **store}),
                )
            )
        return made[key]

    return make


@pytest.fixture
def family_job(
    data: tiny_data.TinyData, checkpoint: Callable[..., Path], family_store: Callable[..., Path], tmp_path: Path
) -> Callable[..., TrainJob]:
    """`family_job("qwen3_vl", **train settings)`: a short run of the family's student."""

    def make(name: str, *, store: Path | None = None, student: Path | None = None, **train: Any) -> TrainJob:
        defaults: dict[str, Any] = {"output": tmp_path / "out", "steps": 6, "micro_batch": 2, "learning_rate": 1e-3}
        return TrainJob(
            student=student or checkpoint(name, **STUDENT),
            images=data.images,
            store=store or family_store(name),
            train=TrainConfig(**defaults | train),
        )

    return make
