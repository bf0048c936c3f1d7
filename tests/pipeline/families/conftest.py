"""Checkpoints of many families, one data set, and what transformers alone computes from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import family_fixtures
import pytest
import tiny_data
import yaml

WriteFamilyConfig = Callable[..., Path]


data, checkpoint = family_fixtures.data, family_fixtures.checkpoint


@pytest.fixture(scope="session")
def write_family_config(data: tiny_data.TinyData) -> WriteFamilyConfig:
    """`write_family_config(folder, checkpoint, {"batch": 2}, backend="zarr")`: a configuration that keeps every target
    as float32, with keys of the sections `teacher` and `store`."""

    def write(folder: Path, checkpoint: Path, teacher: Mapping[str, Any] | None = None, **store: Any) -> Path:
        sections = {
            "data": {"conversations": str(data.conversations), "images": str(data.images)},
            "teacher": {"checkpoint": str(checkpoint), "dtype": "float32", **(teacher or {})},
            "store": {
                "path": str(folder / "store"),
                "attention": "float32",
                "vision_top": "float32",
                "vision_all": "float32",
                "logits": {"kind": "full", "dtype": "float32"},
                "shard_size": 4,
                **store,
            },
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return write
