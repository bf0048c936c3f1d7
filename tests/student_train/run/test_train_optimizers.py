"""`train(job)` with each optimiser: resumed, from one to another, and on one process or two."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from processes_of_two import ended, place_of_two
from safetensors.torch import load_file

from alignkd.student_train import trainer
from alignkd.student_train.job import TrainJob
from alignkd.student_train.output import read_configuration, read_exported
from alignkd.student_train.trainer import train
from alignkd.vlm.errors import InputError

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
# Largest relative difference of a figure to that of a run with moments in float32, after 5 steps. Measured: 6e-5.
EIGHT_BITS = 5e-4
ROUNDING = 2e-5
SETTINGS: dict[str, Any] = {"steps": 5, "global_batch": 4}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")


@pytest.fixture
def reference(many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path) -> list[dict[str, Any]]:
    """The figures of an unbroken run of `adamw`."""
    train(make_job(many_store, output=tmp_path / "reference", micro_batch=2, **SETTINGS))
    return read_metrics(tmp_path / "reference")


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the next run after so many steps of its own."""
    original, calls = trainer._optimiser_step, [0]

    def stopped(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(trainer, "_optimiser_step", stopped)


def assert_close(found: list[dict[str, Any]], expected: list[dict[str, Any]], bound: float) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        for name, value in other.items():
            assert line[name] == (value if value is None else pytest.approx(value, rel=bound)), (line["step"], name)


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw_8bit", "bfloat16"), ("adamw_offload", "float32")])
def test_resumed_is_unbroken(
    optimizer: str, dtype: str, many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Bit for bit, with accumulation."""
    settings = {**SETTINGS, "micro_batch": 2, "dtype": dtype, "optimizer": optimizer}
    train(make_job(many_store, output=tmp_path / "unbroken", **settings))
    job = make_job(many_store, output=tmp_path / "broken", **settings)
    with monkeypatch.context() as patch:
        stop_at(2, patch)
        assert train(job).interrupted_by is not None
    train(job)
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


@pytest.mark.parametrize(
    "order",
    [
        ("adamw", "adamw_offload", "adamw"),
        ("adamw_offload", "adamw_8bit", "adamw"),
        ("adamw_8bit", "adamw_offload", "adamw_8bit"),
    ],
)
def test_a_run_goes_on_with_another_optimiser(
    order: tuple[str, ...], many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path,
    reference: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A log line names the change; the losses continue within rounding."""
    with caplog.at_level(logging.INFO):
        for number, optimizer in enumerate(order):
            job = make_job(many_store, output=tmp_path / "out", micro_batch=2, optimizer=optimizer, **SETTINGS)
            with monkeypatch.context() as patch:
                if number < len(order) - 1:
                    stop_at(2, patch)
                train(job)
    bound = EIGHT_BITS if "adamw_8bit" in order else ROUNDING
    assert_close(read_metrics(tmp_path / "out"), reference, bound)
    said = [line for line in caplog.messages if line.startswith("optimizer: ")]
    expected = [
        f"optimizer: {before} until step {2 * number + 2}, now {after}"
        + ("; moments, which were in float32, are rounded to 8 bits" if after == "adamw_8bit" else "")
        for number, (before, after) in enumerate(pairwise(order))
    ]
    assert said == expected
    first = caplog.messages.index(said[0])
    assert "resuming at step 2" in caplog.messages[first - 1]


def test_one_process_two_processes_one_process(
    many_store: Path, make_job: MakeJob, start_child: Any, one_thread: None,
    read_metrics: ReadMetrics, tmp_path: Path, reference: list[dict[str, Any]], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """From plain torch to ZeRO-2 and back; blocks are divided anew. With `adamw`: see test_train_faults.py."""
    job = make_job(many_store, output=tmp_path / "out", micro_batch=1, optimizer="adamw_8bit", **SETTINGS)
    ended(start_child(job, ("trainer", "_optimiser_step", 2, signal.SIGTERM)), 128 + signal.SIGTERM)
    place, blow = place_of_two(), ("trainer", "_optimiser_step", 2, signal.SIGTERM)
    pair = [start_child(job, blow, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]
    for child in pair:
        ended(child, 128 + signal.SIGTERM)
    with caplog.at_level(logging.INFO):
        train(job)
    told = "processes: 2 until step 4, now 1; moments, which are divided into other blocks, are rounded to 8 bits"
    assert told in caplog.messages
    assert_close(read_metrics(job.train.output), reference, EIGHT_BITS)


def test_two_processes_resume_exactly(
    many_store: Path, make_job: MakeJob, start_child: Any, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Moments in 8 bits in the same blocks: bit for bit."""
    outputs = {}
    for name, blows in {
        "unbroken": [None],
        "broken": [("trainer", "_optimiser_step", 2, signal.SIGTERM), None],
    }.items():
        job = make_job(many_store, output=tmp_path / name, micro_batch=1, optimizer="adamw_8bit", **SETTINGS)
        for blow in blows:
            place = place_of_two()
            pair = [start_child(job, blow, RANK=str(rank), LOCAL_RANK=str(rank), **place) for rank in range(2)]
            for child in pair:
                ended(child, 0 if blow is None else 128 + signal.SIGTERM)
        outputs[name] = job.train.output
    assert read_metrics(outputs["broken"]) == read_metrics(outputs["unbroken"])
    weights, expected = (load_file(outputs[n] / "student" / "model.safetensors") for n in ("broken", "unbroken"))
    assert all((weights[name] == value).all() for name, value in expected.items())


def test_a_missing_library_is_one_line_before_anything_is_loaded(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(TrainJob, "open_student", None)
    with pytest.raises(InputError, match=r"train.optimizer 'adamw_8bit' needs bitsandbytes.*`pip install") as error:
        train(make_job(many_store, optimizer="adamw_8bit"))
    assert "\n" not in str(error.value) and "or set train.optimizer to adamw" in str(error.value)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_one_device_needs_no_deepspeed(
    optimizer: str, many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deepspeed"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # importing it fails
    monkeypatch.delitem(sys.modules, "alignkd.student_train.engine.zero.engine", raising=False)
    job = make_job(many_store, steps=2, optimizer=optimizer)
    assert train(job).step == 2
    with pytest.raises(ImportError):
        train(make_job(many_store, output=job.train.output.parent / "offloaded", steps=1, optimizer="adamw_offload"))


def test_the_key_of_earlier_runs_is_understood(tmp_path: Path) -> None:
    """A run keeps its configuration, which later commands read."""
    sections: dict[str, Any] = {"data": [], "store": {}, "train": {"steps": 1, "offload_optimizer": True}}
    (tmp_path / "run.json").write_text(json.dumps(sections))
    assert read_configuration(tmp_path) == {**sections, "train": {"steps": 1, "optimizer": "adamw_offload"}}
    exported = {"run": "x", "step": 1, "configuration": {**sections, "train": {"offload_optimizer": False}}}
    (tmp_path / "export.json").write_text(json.dumps(exported))
    found = read_exported(tmp_path)
    assert found is not None and found["configuration"]["train"] == {"optimizer": "adamw"}
