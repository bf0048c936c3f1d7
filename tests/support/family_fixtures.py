"""Fixtures over families of transformers: a data set and tiny checkpoints; a file or conftest.py imports them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import tiny_families


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
