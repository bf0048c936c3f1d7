"""Runs `alignkd` as users do, in a process of its own, over the golden samples."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from prepared_processes import PreparedProcesses

from alignkd.vlm.weights.files import read_weights
from alignkd.vlm.weights.writer import write_weights

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


@pytest.fixture(scope="session")
def alignkd(patience: float) -> Alignkd:
    """`alignkd("dump", path)`: the finished process, its output as text."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "alignkd.pipeline.cli", *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=patience)

    return run


@pytest.fixture(scope="session")
def alignkd_prepared(prepared: PreparedProcesses, patience: float) -> Alignkd:
    """The same, forked from a process that has imported torch, DeepSpeed and transformers already."""

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        process = prepared.start("-m", "alignkd.pipeline.cli", *arguments)
        output, errors = process.communicate(patience)
        return subprocess.CompletedProcess(list(map(str, arguments)), process.wait(patience), output, errors)

    return run


@pytest.fixture(scope="session")
def alignkd_here() -> Alignkd:
    """The same in this process, which has imported everything already: an exception that a command lets through is the
    test's. What only a process of its own can show (its start, its signals, all of its stderr) takes `alignkd`."""
    from alignkd.pipeline.cli import main

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        given = list(map(str, arguments))
        done = CliRunner().invoke(main, given, catch_exceptions=False)
        return subprocess.CompletedProcess(given, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture
def write_config(golden: Path, golden_images: Path, tmp_path: Path) -> WriteConfig:
    """`write_config(**sections)`: a complete configuration over the golden v1 samples, sections changed as given."""

    def write(name: str = "run.yaml", drop: tuple[str, ...] = (), **changes: dict[str, Any]) -> Path:
        model = {"vision_config": str(golden / "clip"), "dtype": "float32"}
        sections: dict[str, dict[str, Any]] = {
            "data": {"conversations": str(golden / "v1.json"), "images": str(golden_images), "template": "v1"},
            "teacher": {"checkpoint": str(golden / "teacher"), **model},
            "student": {"checkpoint": str(golden / "student"), **model},
            "store": {
                "path": str(tmp_path / "store"),
                "backend": "zarr",
                "attention": "float32",
                "vision_top": "float32",
                "vision_all": "float32",
                "logits": {"kind": "full"},
            },
            "train": {"output": str(tmp_path / "out"), "steps": 2, "micro_batch": 2},
        }
        sections = copy.deepcopy(sections)
        for section, values in changes.items():
            sections[section] |= values
        path = tmp_path / name
        path.write_text(yaml.safe_dump({key: value for key, value in sections.items() if key not in drop}))
        return path

    return write


@pytest.fixture
def another_tower(golden: Path, tmp_path: Path) -> Path:
    """A checkpoint like the golden student's whose vision tower is not the teacher's."""
    folder = tmp_path / "another-tower"
    folder.mkdir()
    for file in (golden / "student").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    weights = read_weights(golden / "student")
    key = next(name for name in weights if name.endswith("patch_embedding.weight"))
    write_weights(weights | {key: weights[key] * 1.01}, folder, dtype=None)
    return folder
