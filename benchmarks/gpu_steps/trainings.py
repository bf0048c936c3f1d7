"""Step 3: short trainings of the golden student: settings and kernels against each other, a resumed run against an
uninterrupted one, device against CPU.
"""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train import trainer
from alignkd.student_train.job import TrainJob
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.errors import InputError
from alignkd.vlm.kernels.choice import check_kernels
from gpu_steps.check import Check
from gpu_steps.golden import dump_job, train_job

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "offload": {"optimizer": "adamw_offload"},
    "eight_bits": {"optimizer": "adamw_8bit"},
    "checkpointing": {"gradient_checkpointing": True},
    "micro_batches": {"micro_batch": 1, "global_batch": 2},
    "bfloat16": {"dtype": "bfloat16"},
    "liger": {"kernels": "liger"},
    "compile": {"kernels": "compile"},
}
DETERMINISTIC = {"deterministic": True}
# Largest relative difference of a step's loss to the plain run's, or of the plain run's to the CPU's.
BOUNDS = {
    "offload": 1e-5,
    "eight_bits": 1e-2,
    "checkpointing": 1e-4,
    "micro_batches": 1e-4,
    "bfloat16": 0.1,
    "liger": 1e-4,
    "compile": 1e-4,
}
TO_CPU, RESUMED = 1e-4, 1e-4


class Stopped(Exception):  # noqa: N818 - the end of a run, not an error of it
    pass


def run(check: Check) -> None:
    """Run every variant, the resumed run, and the same run on the CPU."""
    folder = check.out / "trainings"
    steps = 4 if check.tiny else 20
    dump(dump_job(folder, "compact", "cpu", "store"))
    without = left_out(check.device)
    losses = {name: losses_of(variant(folder, name, steps)) for name in VARIANTS if name not in without}
    check.figures["left_out"] = without
    check.figures["loss"] = [losses["plain"][0], losses["plain"][-1]]
    check.expect(losses["plain"][-1] < losses["plain"][0], "the loss does not fall")
    for name in sorted(BOUNDS.keys() & losses.keys()):
        check.at_most(f"{name}_to_plain", largest(losses[name], losses["plain"]), BOUNDS[name])
    again = losses_of(variant(folder, "plain", steps, "again"))
    check.figures["repeats_to_the_bit"] = again == losses["plain"]
    resumed = resume(check, folder, steps)
    check.figures["resumes_to_the_bit"] = resumed == losses["plain"]
    check.at_most("resumed_to_plain", largest(resumed, losses["plain"]), RESUMED)
    check.at_most("plain_to_cpu", largest(losses["plain"], on_cpu(folder, steps)), TO_CPU)
    one, other = in_another_process(folder, steps, "deterministic")
    check.expect(one == other, "two runs with train.deterministic differ")


def left_out(device: str) -> dict[str, str]:
    """Variant -> why it cannot run here. Kernels are for GPUs; on a CPU, tests of the package compare them."""
    found = {} if find_spec("bitsandbytes") else {"eight_bits": "needs bitsandbytes"}
    for name, settings in VARIANTS.items():
        if (kernels := settings.get("kernels")) is None:
            continue
        if device == "cpu":
            found[name] = "on a CPU"
            continue
        try:
            check_kernels(kernels, torch.device(device))
        except InputError as error:
            found[name] = str(error)
    return found


def variant(folder: Path, name: str, steps: int, output: str | None = None) -> TrainJob:
    """A training of that many steps, with a checkpoint in the middle."""
    settings = {"steps": steps, "checkpoint_every": steps // 2, **{**VARIANTS, "deterministic": DETERMINISTIC}[name]}
    return train_job(folder / "store", folder / (output or name), **settings)


def losses_of(job: TrainJob) -> list[float]:
    """The loss of each step."""
    trainer.train(job)
    lines = [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]
    return [float(line["loss"]) for line in lines]


def largest(found: list[float], expected: list[float]) -> float:
    """Largest relative difference of a step; infinite if the numbers of steps differ."""
    if len(found) != len(expected):
        return math.inf
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


def resume(check: Check, folder: Path, steps: int) -> list[float]:
    """The losses of a run that was stopped one step after its checkpoint and resumed."""
    job, real = variant(folder, "plain", steps, "resumed"), trainer._check_not_diverged

    def broken(state: Any, *others: Any) -> None:
        real(state, *others)
        if state.step == steps // 2 + 1:
            raise Stopped

    trainer._check_not_diverged = broken
    try:
        trainer.train(job)
        check.expect(False, "a training that should have been broken off was not")
    except Stopped:
        pass
    finally:
        trainer._check_not_diverged = real
    return losses_of(job)


def on_cpu(folder: Path, steps: int) -> list[float]:
    """The plain run in a process without a GPU."""
    (losses,) = in_another_process(folder, steps, "cpu", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    return losses


def in_another_process(folder: Path, steps: int, what: str, **environment: str) -> list[list[float]]:
    """The losses of the runs of `RUNS[what]`: CUDA must start with other settings, or not at all."""
    command = [sys.executable, "-m", "gpu_steps.trainings", str(folder), str(steps), what]
    subprocess.run(command, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL)
    losses: list[list[float]] = json.loads((folder / f"{what}.json").read_text())
    return losses


RUNS = {"cpu": [("plain", "on-cpu")], "deterministic": [("deterministic", "once"), ("deterministic", "twice")]}


if __name__ == "__main__":
    where, number, asked = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    made = [losses_of(variant(where, name, number, output)) for name, output in RUNS[asked]]
    (where / f"{asked}.json").write_text(json.dumps(made))
