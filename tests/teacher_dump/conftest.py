"""A job over the golden fine-tuning samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from teacher_dump.config import StoreConfig, TeacherConfig
from teacher_dump.job import DumpJob

MakeJob = Callable[..., DumpJob]


@pytest.fixture
def make_job(golden: Path, golden_images: Path, tmp_path: Path) -> MakeJob:
    """`make_job(entries=None, **store settings)`: a dump of `entries` (the golden v1 samples) into tmp_path/store."""

    def make(entries: list[Any] | None = None, batch: int = 3, max_tokens: int | None = 2048, **store: Any) -> DumpJob:
        data = tmp_path / "data.json"
        samples = json.loads((golden / "v1.json").read_text()) if entries is None else entries
        data.write_text(json.dumps(samples))
        settings = {
            "attention": "float32",
            "vision_top": "float32",
            "vision_all": "float32",
            "logits": {"kind": "full"},
        }
        return DumpJob(
            conversations=data,
            images=golden_images,
            template="v1",
            max_tokens=max_tokens,
            teacher=TeacherConfig(checkpoint=str(golden / "teacher"), vision_config=golden / "clip", batch=batch),
            store=StoreConfig(**{"path": tmp_path / "store", "shard_size": 2, **settings, **store}),
        )

    return make
