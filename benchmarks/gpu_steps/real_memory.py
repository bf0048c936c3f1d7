"""Step 5: memory of training at real shapes, against `alignkd plan`; random weights, no files."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cases.random_step import Pair

from alignkd.pipeline.plan.memory.student import student_memory
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.objective.objective import weighted_total
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.sizes import family_config
from gpu_steps.check import Check
from gpu_steps.golden import GOLDEN

GIB = 1 << 30
CARD = 24 * GIB
# Largest difference of the allocated memory to the plan's, as a share of the plan's.
BOUND = 0.10
MICRO_BATCHES = 2


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        optimizer: of `train`.
        samples, length: of a micro-batch.
        checkpointing: whether layers are computed again.
        fits: whether it has to fit a card of 24 GiB.
    """

    optimizer: str
    samples: int
    length: int
    checkpointing: bool = False
    fits: bool = True

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.optimizer} {self.samples} x {self.length}{', checkpointing' if self.checkpointing else ''}"


CASES = (
    Case("adamw_8bit", 4, 512),
    Case("adamw_8bit", 1, 2048),
    Case("adamw_8bit", 16, 512, checkpointing=True),
    Case("adamw_offload", 2, 512),
    Case("adamw_offload", 4, 2048, checkpointing=True),
    Case("adamw", 4, 512, fits=False),
)
TINY_CASES = (
    Case("adamw", 1, 256),
    Case("adamw_8bit", 2, 256, checkpointing=True),
    Case("adamw_offload", 1, 256),
)


def run(check: Check) -> None:
    """Two optimiser steps of every case."""
    pair = pair_of(check)
    for case in TINY_CASES if check.tiny else CASES:
        with cap(check.device, CARD if case.fits else None):
            measure(check, pair, case)


def pair_of(check: Check) -> Pair:
    """The real pair, or with `tiny` the golden one."""
    if check.tiny:
        student, teacher = (
            load_config(GOLDEN / role, vision_config=GOLDEN / "clip") for role in ("student", "teacher")
        )
        return Pair(student=student, teacher=teacher, dtype=torch.bfloat16)
    return Pair(student=family_config("MobileVLM_V2-1.7B"), teacher=family_config("MobileVLM_V2-7B"))


def measure(check: Check, pair: Pair, case: Case) -> None:
    """Record planned, allocated and reserved memory, and the host's."""
    planned = student_memory(
        pair.shapes,
        pair.load(
            case.samples,
            case.length,
            check.device,
            optimizer=case.optimizer,
            gradient_checkpointing=case.checkpointing,
            accumulates=True,
        ),
    )
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


def engine_of(check: Check, pair: Pair, case: Case, **settings: Any) -> Any:
    """An engine with a random student."""
    config = TrainConfig.model_validate(
        {
            "output": str(Path(check.out) / "never"),
            "steps": 1,
            "micro_batch": case.samples,
            "global_batch": case.samples * MICRO_BATCHES,
            "optimizer": case.optimizer,
            "gradient_checkpointing": case.checkpointing,
            "preset": "paper",
            **settings,
        }
    )
    student = pair.new_student(check.device, checkpointing=case.checkpointing)
    return build_engine(student, config, dtype=pair.dtype, ranks=start_ranks())


def optimiser_step(engine: Any, batch: Any, step: int) -> None:
    """One step of several micro-batches."""
    weights = engine.student.losses.weights
    engine.start_step(step, micro_batches=MICRO_BATCHES)
    for _ in range(MICRO_BATCHES):
        engine.backward(weighted_total(engine(batch), weights, dict.fromkeys(weights, 1000)))
        engine.end_micro_batch(0.1)


@contextmanager
def cap(device: str, most: int | None) -> Iterator[None]:
    """Refuse more than `most` bytes of the device, as a smaller card would."""
    if device != "cuda" or most is None:
        yield
        return
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / whole))
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
