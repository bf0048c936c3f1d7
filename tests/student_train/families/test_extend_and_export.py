"""A student of a generic family is trained further, and exported at a checkpoint on the way."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.output.export_checkpoint import export_checkpoint
from alignkd.student_train.trainer import train


def files_of(folder: Path) -> dict[Path, bytes]:
    """Student and adapters, by path."""
    paths = [folder / "adapters.safetensors", *(folder / "student").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def test_the_state_of_an_extension_is_that_of_its_checkpoints(
    family_job: Callable[..., TrainJob], read_metrics: Callable[[Path], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """In bfloat16: two steps, extended to four; the checkpoint of step 4 exports what the extension does."""
    settings: dict[str, Any] = {"micro_batch": 2, "checkpoint_every": 1, "keep_every": 3, "keep_checkpoints": 1}
    old = replace(family_job("qwen3_vl", output=tmp_path / "old", steps=2, **settings), dtype="bfloat16")
    train(old)
    export_checkpoint(old, 2, tmp_path / "exported-old")
    assert files_of(tmp_path / "exported-old") == files_of(tmp_path / "old")

    extend = {"run": tmp_path / "old", "schedule": "constant", "learning_rate": 1e-3}
    new = replace(family_job("qwen3_vl", output=tmp_path / "new", steps=4, extend=extend, **settings), dtype="bfloat16")
    train(new)
    assert [line["step"] for line in read_metrics(tmp_path / "new")] == [3, 4]
    assert sorted(path.name for path in (tmp_path / "new" / "checkpoints").iterdir()) == [
        "step-00000003",
        "step-00000004",
    ]
    for step in (4, 3):
        export_checkpoint(new, step, tmp_path / f"exported-{step}")
    assert files_of(tmp_path / "exported-4") == files_of(tmp_path / "new")
    three, four = (files_of(tmp_path / f"exported-{step}") for step in (3, 4))
    changed = {path.name for path in three if three[path] != four[path]}
    assert three.keys() == four.keys() and changed == {"adapters.safetensors", "model.safetensors"}
