"""`benchmarks/gpu_check.py` without a GPU: its steps run, and what fails or is skipped is reported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gpu_steps import trainings
from gpu_steps.golden import dump_job
from kernels_on_cpu import use_toys

from alignkd.teacher_dump.dump import dump

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


WITHOUT_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


def gpu_check(
    *arguments: str | Path, prelude: str = "", environment: dict[str, str] = WITHOUT_GPU
) -> tuple[int, list[dict[str, Any]], str]:
    """Exit code, lines of output and errors; `prelude` changes the module first."""
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_check\n{prelude}\ngpu_check.main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()], ended.stderr


@pytest.mark.gpu
def test_this_machines_gpu_computes_what_a_cpu_computes(tmp_path: Path, gpu_environment: dict[str, str]) -> None:
    arguments = ("--tiny", "--device", "cuda", "--out", tmp_path / "out")
    exit_code, lines, errors = gpu_check(*arguments, environment=gpu_environment)
    assert exit_code == 0, errors
    assert [line["ok"] for line in lines] == [True] * 9, lines


def test_the_device_rules_hold_on_a_cpu(tmp_path: Path) -> None:
    exit_code, (line,), _ = gpu_check("--tiny", "--device", "cpu", "--steps", "1", "--out", tmp_path / "out")
    assert exit_code == 0 and line["ok"] and "problem" not in line
    assert line["figures"]["codec_arrays"] > 0 and line["figures"]["losses_float32_head"] < 1e-5


def test_memory_ratios_and_kernels_are_measured_and_shown(tmp_path: Path) -> None:
    out = tmp_path / "out"
    exit_code, lines, errors = gpu_check("--tiny", "--device", "cpu", "--steps", "5-7", "--out", out)
    assert exit_code == 0 and [line["ok"] for line in lines] == [True] * 3, (lines, errors)
    memory, ratios, levers = (line["figures"] for line in lines)
    assert {name.partition(" ")[0] for name in memory} == {"adamw", "adamw_8bit", "adamw_offload"}
    assert ratios["2 x 256"]["Align-KD to supervised"] > 0 and levers["kernels torch"]["to torch"] == 1
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_check; gpu_check.main()"
    shown = subprocess.run([sys.executable, "-c", code, "--table", out], capture_output=True, text=True).stdout
    assert "| real_memory | passed |" in shown and "Align-KD to supervised" in shown


def test_trainings_with_other_kernels_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of step 3, with stand-ins for the kernels, which are left out on a CPU otherwise."""
    use_toys(monkeypatch)
    dump(dump_job(tmp_path, "compact", "cpu", "store"))
    losses = {name: trainings.losses_of(trainings.variant(tmp_path, name, 2)) for name in ("plain", "liger", "compile")}
    for name in ("liger", "compile"):
        assert 0 <= trainings.largest(losses[name], losses["plain"]) <= trainings.BOUNDS[name]
        assert trainings.variant(tmp_path, name, 2).train.kernels == name
        assert trainings.left_out("cpu")[name] == "on a CPU"
    assert trainings.VARIANTS.keys() - {"plain"} == trainings.BOUNDS.keys()


def test_the_commands_run(tmp_path: Path) -> None:
    exit_code, (line,), errors = gpu_check("--tiny", "--device", "cpu", "--steps", "8", "--out", tmp_path / "out")
    assert exit_code == 0 and line["ok"] and len(line["figures"]["kernels"]) == 20, (line, errors)


def test_a_step_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    prelude = "gpu_check.STEPS = (gpu_check.Step('absent', 60), gpu_check.Step('environment', 0.01))"
    exit_code, (absent, late), _ = gpu_check("--device", "cpu", "--steps", "0,1", "--out", tmp_path, prelude=prelude)
    assert exit_code == 1
    assert (absent["name"], absent["ok"]) == ("absent", False)
    assert absent["problem"] == "ModuleNotFoundError: No module named 'gpu_steps.absent'"
    assert (late["name"], late["ok"]) == ("environment", False)
    assert late["problem"].startswith("stopped after 0 s; ")


def test_what_does_not_fit_the_time_is_reported_as_skipped(tmp_path: Path) -> None:
    exit_code, lines, _ = gpu_check("--device", "cpu", "--seconds", "1", "--out", tmp_path)
    assert exit_code == 0
    first = ["environment", "device_rules", "dumps", "trainings", "waits"]
    assert [line["name"] for line in lines] == [*first, "real_memory", "ratios", "levers", "commands"]
    assert all(line["ok"] is None and line["problem"].startswith("skipped, ") for line in lines)


@pytest.mark.parametrize(("arguments", "named"), [(["--steps", "0-9"], "no step 9"), ([], "is not empty")])
def test_usage(arguments: list[str], named: str, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    exit_code, lines, errors = gpu_check("--out", tmp_path, *arguments)
    assert exit_code == 2 and not lines and named in errors and (tmp_path / "mine").exists()
