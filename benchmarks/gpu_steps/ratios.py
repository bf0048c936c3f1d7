"""Step 6: time of distillation and of the dump as ratios: each compares two figures of the same rounds."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cases.random_step import Pair

from alignkd.student_train.objective.objective import DistilledStudent, weighted_total
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.objective.terms import preset_weights
from gpu_steps.check import Check
from gpu_steps.real_memory import pair_of, release
from gpu_steps.timing import alternating, ratio

ROUNDS = 8
# Align-KD from a store to plain fine-tuning, and the dump to its bare forward passes.
MOST_DISTILLATION, LEAST_DUMP = 1.05, 0.95


@dataclass(frozen=True)
class Shape:
    """Samples and positions of a micro-batch."""

    samples: int
    length: int

    def __str__(self) -> str:
        return f"{self.samples} x {self.length}"


def run(check: Check) -> None:
    """Measure training at both recipes' shapes, then the dump."""
    pair, rounds = pair_of(check), 1 if check.tiny else ROUNDS
    student = pair.new_student(check.device).to(pair.dtype)
    for shape in (Shape(2, 256),) if check.tiny else (Shape(4, 512), Shape(1, 2048), Shape(16, 512)):
        training(check, pair, student, shape, rounds)
    del student
    release(check.device)
    if not check.tiny:
        dump(check)


def training(check: Check, pair: Pair, student: DistilledStudent, shape: Shape, rounds: int) -> None:
    """Forward and backward pass: plain fine-tuning, Align-KD, and Align-KD with small chunks of attention rows."""
    plain = pair.micro_batch(shape.samples, shape.length, preset="supervised").to(check.device)
    whole = pair.micro_batch(shape.samples, shape.length).to(check.device)
    variants = {
        "supervised": step(student, plain, LossConfig.model_validate(preset_weights("supervised"))),
        "Align-KD": step(student, whole, LossConfig.model_validate(preset_weights("paper"))),
        "chunks of 8 MiB": step(
            student, whole, LossConfig.model_validate({**preset_weights("paper"), "attention_chunk_mib": 8})
        ),
    }
    times = alternating(check.device, variants, rounds)
    figures: dict[str, Any] = {f"{name} ms": round(median(values), 1) for name, values in times.items()}
    figures["Align-KD to supervised"] = ratio(times, "Align-KD", "supervised")
    figures["chunks of 8 MiB to default"] = ratio(times, "chunks of 8 MiB", "Align-KD")
    figures["positions per second"] = round(1000 * shape.samples * shape.length / median(times["Align-KD"]))
    check.figures[str(shape)] = figures
    if check.device == "cuda":
        found = figures["Align-KD to supervised"]
        check.expect(
            found <= MOST_DISTILLATION, f"{shape}: Align-KD takes {found} of supervised, goal {MOST_DISTILLATION}"
        )


def step(student: DistilledStudent, batch: Any, losses: LossConfig) -> Callable[[], None]:
    """A forward and backward pass with these losses."""

    def call() -> None:
        student.losses = losses
        terms = student(batch)
        weighted_total(terms, losses.weights, dict.fromkeys(losses.weights, 1000)).backward()
        student.zero_grad()

    return call


def dump(check: Check) -> None:
    """`benchmarks/dump.py` at the width of the 7B teacher."""
    script = Path(__file__).parents[1] / "dump.py"
    options = ["--device", check.device, "--dtype", "bfloat16", "--hidden", "4096", "--layers", "8", "--samples", "64"]
    options += ["--token-budget", "8192", "--shard-size", "32", "--no-naive", "--no-memory", "--rounds", "3"]
    ended = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    (check.out / "dump-benchmark.txt").write_text(ended.stdout + ended.stderr)
    check.expect(ended.returncode == 0, f"benchmarks/dump.py ended with exit code {ended.returncode}")
    check.figures["dump"] = [line for line in ended.stdout.splitlines() if "%" in line or "dump" in line][:6]
