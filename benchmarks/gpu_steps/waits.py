"""Step 4: places where the host waits for the device, as CUDA reports them, against the list of known places.

The list is `tests/gpu_rules/known_waits.py`; on machines without a GPU, tests compare a simulated device with it.
"""

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignkd.student_train.objective.objective import weighted_total
from alignkd.student_train.run.plan import open_samples
from alignkd.student_train.run.student import build_student
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.teacher import load_teacher
from gpu_steps.check import Check
from gpu_steps.golden import dump_job, train_job

sys.path.append(str(Path(__file__).parents[2] / "tests" / "gpu_rules"))


def run(check: Check) -> None:
    """Run a dump and a micro-batch and record every wait."""
    if check.device != "cuda":
        check.figures["not_applicable"] = "only CUDA notices that its host waits"
        return
    from known_waits import LOADING, MICRO_BATCH, TEACHER_BATCH

    folder = check.out / "waits"
    job = dump_job(folder, "compact", check.device, "store")
    teacher = load_teacher(job, job.open_teacher())
    with noticed() as waits:
        dump(job, teacher)
    compare(check, "dump", waits, [*TEACHER_BATCH, *LOADING])
    with noticed() as waits:
        micro_batch(folder, check.device)
    compare(check, "micro-batch", waits, [*MICRO_BATCH, *LOADING])


def micro_batch(folder: Path, device: str) -> None:
    """Forward and backward pass of the golden samples."""
    from alignkd.student_train.data.collate import collate

    job = train_job(folder / "store", folder / "never", steps=1)
    dataset = open_samples(job, job.open_student())
    with noticed_later(device):
        student = build_student(job, job.open_student(), dataset.reader).to(device)
    weights = job.train.losses.weights
    samples, targets = [dataset[number] for number in range(len(dataset))], job.train.losses.needed_targets.values()
    batch = collate(samples, targets=targets, attention_pairs="tqv")
    weighted_total(student(batch.to(device)), weights, dict.fromkeys(weights, 1)).backward()


@contextmanager
def noticed_later(device: str) -> Iterator[None]:
    """Waits inside the block are not reported."""
    if device != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("default")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@contextmanager
def noticed() -> Iterator[Counter[Any]]:
    """Places at which the host waited."""
    from places import current_place

    waits: Counter[Any] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *others, **more: (
            waits.update([current_place()]) if "synchronizing CUDA" in str(message) else None
        )
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


def compare(check: Check, what: str, waits: Counter[Any], known: list[Any]) -> None:
    """Every place must be in the list."""
    check.figures[what] = {str(place): count for place, count in waits.items()}
    listed = {(entry.file, entry.function) for entry in known}
    others = [str(place) for place in waits if (place.file, place.function) not in listed]
    check.expect(not others, f"{what}: waits that are not listed: {', '.join(others)}")
