"""Checkpoints of many families, one data set, and what transformers alone computes from them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import tiny_families
import yaml

WriteFamilyConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tiny_data.TinyData:
    """Conversations with no, one, two and three images, wide and tall ones, several turns and scripts."""
    return tiny_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`checkpoint("qwen3_vl", seed=1)`: the folder of a checkpoint; equal arguments give the same folder."""
    built: dict[Any, Path] = {}

    def build(name: str, **options: Any) -> Path:
        key = (name, *sorted(options.items()))
        if key not in built:
            built[key] = tiny_families.build(name, tmp_path_factory.mktemp(name) / "checkpoint", **options)
        return built[key]

    return build


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
