"""Tiny checkpoints of many families and their preparations."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import tiny_families

from alignkd.vlm.families.huggingface.inputs.opening import open_preparation
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation

FolderOf = Callable[[str], Path]
Opened = Callable[[str], HuggingFacePreparation]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    """`folder_of("qwen3_vl")`: a checkpoint's folder; do not change it."""
    return cache(lambda family: tiny_families.build(family, tmp_path_factory.mktemp(family) / "checkpoint"))


@pytest.fixture(scope="session")
def opened(folder_of: FolderOf) -> Opened:
    """`opened("qwen3_vl")`: the preparation of that checkpoint."""
    return cache(lambda family: open_preparation(folder_of(family)))
