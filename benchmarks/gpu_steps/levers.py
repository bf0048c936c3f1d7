"""Step 7: time and memory of kernels and optimisers, each against torch's own, in alternating rounds."""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from cases.random_step import Pair
from cases.training_case import GIB, TrainingCase

from alignkd.student_train.config import OptimizerName
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.vlm.errors import InputError
from alignkd.vlm.kernels.choice import Kernels
from gpu_steps.check import Check
from gpu_steps.ratios import ROUNDS, Shape, step
from gpu_steps.real_memory import device_memory, engine_of, optimiser_step, pair_of, release, reset
from gpu_steps.timing import alternating, ratio

KERNELS: tuple[Kernels, ...] = ("torch", "liger", "compile")
# A GPU of 24 GiB holds no `adamw` of the real student; the largest that a step of it needs is given by `alignkd plan`.
ADAMW_BYTES = 30 * GIB


def run(check: Check) -> None:
    """Forward and backward pass with each kind of kernels, then the step of each optimiser."""
    pair, rounds = pair_of(check), 1 if check.tiny else ROUNDS
    shape = Shape(2, 256) if check.tiny else Shape(4, 512)
    kernels(check, pair, shape, rounds)
    optimisers(check, pair, shape, rounds)


def kernels(check: Check, pair: Pair, shape: Shape, rounds: int) -> None:
    """Time and memory with each kind; a kind that cannot run here is named with the reason."""
    batch = pair.micro_batch(shape.samples, shape.length).to(check.device)
    functions: dict[str, Callable[[], None]] = {}
    for kind in KERNELS if check.device == "cuda" else ("torch",):
        student = student_with(pair, kind, check)
        if student is not None:
            functions[kind] = step(student, batch, student.losses)
    peaks = {kind: peak_of(check, function) for kind, function in functions.items()}
    times = alternating(check.device, functions, rounds)
    for kind in functions:
        figures: dict[str, Any] = {"ms": round(median(times[kind]), 1), "to torch": ratio(times, kind, "torch")}
        if check.device == "cuda":
            figures["activations GiB"] = peaks[kind]
        check.figures[f"kernels {kind}"] = figures


def student_with(pair: Pair, kind: Kernels, check: Check) -> DistilledStudent | None:
    """A student with these kernels; None if they cannot run here."""
    student = pair.new_student(check.device).to(pair.dtype)
    try:
        check.figures[f"{kind} is"] = student.model.use_kernels(kind)
    except InputError as error:
        check.figures[f"kernels {kind}"] = f"not here: {error}"[:200]
        return None
    return student


def peak_of(check: Check, function: Callable[[], None]) -> float:
    """Memory of one call in addition to what is there before it, in GiB."""
    function()  # compiles, and allocates gradients
    reset(check.device)
    before = torch.cuda.memory_allocated() if check.device == "cuda" else 0
    function()
    return round((device_memory(check.device)[0] - before) / GIB, 2)


def optimisers(check: Check, pair: Pair, shape: Shape, rounds: int) -> None:
    """A whole step of two micro-batches with each optimiser, one after the other: two do not fit beside each other."""
    names: list[OptimizerName] = ["adamw_8bit", "adamw_offload"]
    if check.tiny or (check.device == "cuda" and torch.cuda.get_device_properties(0).total_memory > ADAMW_BYTES):
        names.insert(0, "adamw")
    batch = pair.micro_batch(shape.samples, shape.length)
    for name in names:
        engine = engine_of(check, pair, TrainingCase(name, shape.samples, shape.length))
        times = alternating(check.device, {name: partial(optimiser_step, engine, batch, 0)}, max(1, rounds // 2))
        check.figures[f"step {name} ms"] = round(median(times[name]), 1)
        del engine
        release(check.device)
