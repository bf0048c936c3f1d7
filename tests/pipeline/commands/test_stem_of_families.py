"""`alignkd stem`, `alignkd models --pair` and the plan's bytes, for teachers of transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families
from click.testing import CliRunner, Result

from alignkd.pipeline.cli import main
from alignkd.pipeline.plan.stem import sizes_of, stem_bytes_on_disk
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.families.open import open_checkpoint

WriteConfig = Callable[..., Path]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    options: dict[str, dict[str, Any]] = {
        "teacher": {"tower_seed": 1},
        "student": {"tower_seed": 1, "hidden_size": 32, "heads": 2},
        "other": {"tower_seed": 2, "hidden_size": 32, "heads": 2},
    }
    made = {name: tiny_families.build("gemma3", root / name, **given) for name, given in options.items()}
    return made | {"qwen": tiny_families.build("qwen3_vl", root / "qwen")}


@pytest.mark.parametrize("given", [(), ("--lm-head",), ("--depth", "2")])
def test_the_size_that_is_foretold(
    folders: dict[str, Path], write_config: WriteConfig, tmp_path: Path, given: tuple[str, ...]
) -> None:
    """By `stem size` from config.json alone, by the plan to the byte, and by `stem show`."""
    teacher = {"checkpoint": str(folders["teacher"]), "dtype": "bfloat16", "vision_config": None}
    config = write_config(teacher=teacher, data={"template": None})
    out = tmp_path / "stem.safetensors"
    extracted = run("stem", "extract", config, "--out", out, "--json", *given)
    assert extracted.exit_code == 0, extracted.output
    written, shown = json.loads(extracted.stdout), json.loads(run("stem", "show", out, "--json").stdout)
    foretold = json.loads(run("stem", "size", folders["teacher"], "--json", *given).stdout)
    head, depth = "--lm-head" in given, 2 if "--depth" in given else 1
    assert written == shown and shown["lm_head"] == head and shown["dtype"] == "bfloat16"
    assert shown["depth"] == foretold["depth"] == depth
    for name in ("device_bytes", "host_bytes", "device_bytes_of_lm_head", "memory_bytes"):
        assert shown[name] == foretold[name]
    checkpoint, settings = open_checkpoint(folders["teacher"]), TeacherConfig(checkpoint="x", dtype="bfloat16")
    if not head:
        assert stem_bytes_on_disk(checkpoint.config, settings, checkpoint.preparation(), depth) == out.stat().st_size
        sizes = sizes_of(checkpoint.config, settings, depth)
        assert sizes is not None and (sizes.device, sizes.host) == (shown["device_bytes"], shown["host_bytes"])


def test_a_teacher_without_a_stem(folders: dict[str, Path]) -> None:
    found = run("stem", "size", folders["qwen"])
    assert found.exit_code == 1 and len(found.output.strip().splitlines()) == 1
    assert "this family has no stem: store the targets (store.profile compact); the projector" in found.output


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("student", "possible: teacher and student share their vision tower (weights compared in float32)"),
        ("other", "not possible: the weights of the vision towers differ in float32"),
        ("qwen", "not possible: the pair does not allow it"),
    ],
)
def test_a_pair_says_whether_a_stem_is_possible(folders: dict[str, Path], student: str, message: str) -> None:
    found = run("models", "--pair", folders["teacher"], folders[student])
    (line,) = [line for line in found.stdout.splitlines() if line.startswith("stem ")]
    assert line.split(maxsplit=1)[1] == message
