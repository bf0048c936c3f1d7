"""Configurations of small runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stem_runs import ENTRIES, FULL, TRAIN

WriteConfig = Callable[..., Path]


@pytest.fixture
def write(write_config: WriteConfig, tmp_path: Path) -> WriteConfig:
    """write(name, store=, train=): a run over `ENTRIES`; its store and output are named so."""
    (tmp_path / "data.json").write_text(json.dumps(ENTRIES))

    def config(name: str, *, store: dict[str, Any], train: dict[str, Any] | None = None, **more: Any) -> Path:
        given = {
            "data": {"conversations": str(tmp_path / "data.json")},
            "store": {"path": str(tmp_path / f"store-{name}"), "logits": FULL, **store},
            "train": {"output": str(tmp_path / f"out-{name}"), **TRAIN, **(train or {})},
            "teacher": {"sanity": "off"},
        }
        sections = {section: {**given.get(section, {}), **more.get(section, {})} for section in (*given, *more)}
        return write_config(f"{name}.yaml", **sections)

    return config
