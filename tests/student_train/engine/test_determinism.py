"""`train.deterministic`: when the flag of torch is set, when it is refused, and that runs repeat."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.student_train import trainer
from alignkd.student_train.engine.determinism import WORKSPACE, repeatable
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.losses.attention.outcomes import sums_of_one
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]


@pytest.fixture(autouse=True)
def _flag_as_before() -> Iterator[None]:
    yield
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_flag_is_set_during_the_steps_and_two_runs_are_equal(
    make_job: MakeJob,
    exact_store: Path,
    read_metrics: Callable[[Path], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, seen = trainer._optimiser_step, []
    monkeypatch.setattr(
        trainer,
        "_optimiser_step",
        lambda *given: (seen.append(torch.are_deterministic_algorithms_enabled()), real(*given))[1],
    )
    runs = []
    for name, wanted in (("one", True), ("two", True), ("plain", False)):
        train(make_job(exact_store, output=tmp_path / name, steps=2, deterministic=wanted))
        weights = sorted((tmp_path / name / "student").glob("*.safetensors"))
        runs.append((read_metrics(tmp_path / name), [path.read_bytes() for path in weights]))
        assert weights
    assert seen == [True] * 4 + [False] * 2
    assert runs[0] == runs[1] == runs[2]


def test_an_operation_that_cannot_repeat_ends_the_run_in_one_line(
    make_job: MakeJob, exact_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = torch.zeros(1, dtype=torch.int64)
    monkeypatch.setattr(trainer, "_optimiser_step", lambda *_: torch.zeros(1).put_(place, torch.ones(1)))
    with pytest.raises(TrainError, match=r"^train.deterministic is true, but torch has no form of put_ on cpu .*$"):
        train(make_job(exact_store, steps=1, deterministic=True))


def test_other_errors_stay_as_they_are_and_the_flag_of_the_caller_returns() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with pytest.raises(RuntimeError, match="something else"), repeatable(True, "cpu"):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            with sums_of_one():
                assert not torch.are_deterministic_algorithms_enabled()
            assert torch.are_deterministic_algorithms_enabled()
            raise RuntimeError("something else")
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("value", "started", "problem"),
    [
        (None, False, None),
        (":16:8", True, None),
        (":4096:2", False, r"CUBLAS_WORKSPACE_CONFIG is ':4096:2', expected :4096:8 or :16:8; unset it"),
        (None, True, r"has used CUDA without CUBLAS_WORKSPACE_CONFIG; start it with CUBLAS_WORKSPACE_CONFIG=:4096:8"),
    ],
)
def test_the_workspace_of_cublas(
    value: str | None, started: bool, problem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WORKSPACE, "")  # is put back after the test
    monkeypatch.delenv(WORKSPACE)
    if value is not None:
        monkeypatch.setenv(WORKSPACE, value)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    if problem is None:
        with repeatable(True, "cuda"):
            assert os.environ[WORKSPACE] == (value or ":4096:8")
        return
    with pytest.raises(TrainError, match=problem), repeatable(True, "cuda"):
        pass
