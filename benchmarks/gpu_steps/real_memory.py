"""Step 5: memory of training at real shapes, against `alignkd plan`; random weights, no files."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cases.random_step import Pair
from cases.training_case import GIB, MICRO_BATCHES, TrainingCase, backward, real_pair

from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.vlm.families.mobilevlm.model.config import load_config
from gpu_steps.check import Check
from gpu_steps.golden import GOLDEN

# Largest difference of the allocated memory to the plan's, as a share of the plan's.
BOUND = 0.10
# Trainings, and the GiB of the card that each has to fit; None: this machine's.
CASES: tuple[tuple[TrainingCase, int | None], ...] = (
    (TrainingCase("adamw_8bit", 4, 512), 24),
    (TrainingCase("adamw_8bit", 1, 2048), 24),
    (TrainingCase("adamw_8bit", 16, 512, checkpointing=True), 24),
    (TrainingCase("adamw_8bit", 4, 512, checkpointing=True), 16),
    (TrainingCase("adamw_offload", 1, 512), 12),
    (TrainingCase("adamw_offload", 4, 2048, checkpointing=True), 12),
    (TrainingCase("adamw", 4, 512), None),
)
TINY_CASES: tuple[tuple[TrainingCase, int | None], ...] = (
    (TrainingCase("adamw", 1, 256), 24),
    (TrainingCase("adamw_8bit", 2, 256, checkpointing=True), 24),
    (TrainingCase("adamw_offload", 1, 256), 12),
)


def run(check: Check) -> None:
    """Two optimiser steps of every case."""
    pair = pair_of(check)
    for case, card in TINY_CASES if check.tiny else CASES:
        with cap(check.device, card):
            measure(check, pair, case)


def pair_of(check: Check) -> Pair:
    """The real pair, or with `tiny` the golden one."""
    if not check.tiny:
        return real_pair()
    student, teacher = (load_config(GOLDEN / role, vision_config=GOLDEN / "clip") for role in ("student", "teacher"))
    return Pair(student=student, teacher=teacher, dtype=torch.bfloat16)


def measure(check: Check, pair: Pair, case: TrainingCase) -> None:
    """Record planned, allocated and reserved memory, and the host's."""
    planned = case.planned(pair, check.device)
    engine = engine_of(check, pair, case)
    batch = pair.micro_batch(case.samples, case.length)
    reset(check.device)
    for step in range(1 if check.tiny else 2):
        optimiser_step(engine, batch, step)
    allocated, reserved = device_memory(check.device)
    figures = {"plan GiB": planned.peak / GIB, "host plan GiB": planned.host / GIB, "host GiB": resident() / GIB}
    if check.device == "cuda":
        figures |= {"allocated GiB": allocated / GIB, "reserved GiB": reserved / GIB}
        check.expect(
            abs(allocated - planned.peak) <= BOUND * planned.peak,
            f"{case.name}: {allocated / GIB:.2f} GiB allocated, the plan has {planned.peak / GIB:.2f}",
        )
    check.figures[case.name] = {name: round(value, 2) for name, value in figures.items()}
    del engine, batch
    release(check.device)


def engine_of(check: Check, pair: Pair, case: TrainingCase) -> Any:
    """An engine with a random student."""
    return build_engine(case.student(pair, check.device), case.config(), dtype=pair.dtype, ranks=start_ranks())


def optimiser_step(engine: Any, batch: Any, step: int) -> None:
    """One step of several micro-batches."""
    engine.start_step(step, micro_batches=MICRO_BATCHES)
    for _ in range(MICRO_BATCHES):
        backward(engine, batch)
        engine.end_micro_batch(0.1)


@contextmanager
def cap(device: str, card: int | None) -> Iterator[None]:
    """Refuse more than `card` GiB of the device, as a smaller one would."""
    if device != "cuda" or card is None:
        yield
        return
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, card * GIB / whole))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def reset(device: str) -> None:
    """Begin a measurement."""
    release(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def release(device: str) -> None:
    """Give back what nothing uses."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def device_memory(device: str) -> tuple[int, int]:
    """Largest allocated and reserved bytes; 0 on a CPU."""
    if device != "cuda":
        return 0, 0
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def resident() -> int:
    """Resident memory of this process in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
