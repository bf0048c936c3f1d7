"""`alignkd run` refuses a training that this machine cannot do before the teacher runs, in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.runs import stages
from alignkd.student_train.engine.determinism import WORKSPACE

Alignkd = Callable[..., Any]
WriteConfig = Callable[..., Path]


@pytest.fixture
def refusal(alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path) -> Callable[..., str]:
    """refusal(train={...}): the only line of a run that began no store."""

    def run(**sections: dict[str, Any]) -> str:
        done = alignkd_here("run", write_config(**sections))
        assert done.returncode == 1 and not done.stdout, done.stdout
        (line,) = done.stderr.splitlines()
        assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()
        return str(line)

    return run


def test_kernels_that_need_a_gpu(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "kernels 'liger' need a CUDA device, found cpu" in refusal(train={"kernels": "liger"})
    monkeypatch.setattr(stages, "accelerator", lambda: "cuda")
    monkeypatch.setattr("alignkd.vlm.kernels.liger.find_spec", lambda name: None)
    assert "(no module liger_kernel and no triton); `pip install 'alignkd[kernels]'`" in refusal(
        train={"kernels": "liger"}
    )


def test_a_batch_that_cannot_be_divided(refusal: Callable[..., str]) -> None:
    line = refusal(train={"micro_batch": 3, "global_batch": 4})
    assert "global_batch 4 is not a multiple of micro_batch 3 x 1 devices = 3" in line


def test_a_dtype_that_the_device_cannot_compute_in(refusal: Callable[..., str], golden: Path) -> None:
    student = {"checkpoint": str(golden / "student"), "vision_config": str(golden / "clip"), "dtype": "float16"}
    assert "dtype torch.float16 is not supported on cpu" in refusal(student=student)


def test_workspaces_that_do_not_repeat(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "accelerator", lambda: "cuda")
    monkeypatch.setenv(WORKSPACE, ":0:0")
    line = refusal(train={"deterministic": True})
    assert f"train.deterministic is true, but {WORKSPACE} is ':0:0', expected" in line


def test_class_means_that_are_not_there(refusal: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "centres.safetensors"
    line = refusal(train={"centres": str(path), "losses": {"nd": 1.0}}, store={"state_norms": "float32"})
    assert f"train.centres {path}: not a file; write it by `alignkd shards centres STORE --out {path}`" in line


def test_a_layer_of_relations_that_the_student_lacks(refusal: Callable[..., str]) -> None:
    losses = {"relation": 1.0, "relations_of": "layer_0", "relations_layer": 9}
    line = refusal(train={"losses": losses}, store={"vision_relations": "float16", "relations_of": "layer_0"})
    assert "losses.relations_layer is 9, but the student has 3 decoder layers, 0 to 2; choose one of them" in line
