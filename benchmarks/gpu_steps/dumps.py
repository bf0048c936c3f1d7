"""Step 2: dumps of the golden teacher on the device and on the CPU, and a stopped and resumed dump."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alignkd.storage import Record, StoreReader, verify_store
from alignkd.storage.record.record import as_float32
from alignkd.storage.tools.compare.diff import diff_stores
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.teacher import load_teacher
from gpu_steps.check import Check
from gpu_steps.golden import STORES, dump_job, samples

# Largest difference of a float: that of float32 for raw targets, one step of the format more for encoded ones.
BOUNDS: Mapping[str, Mapping[str, float]] = {
    "raw": {"attention": 1e-5, "vision": 1e-3, "logits": 1e-4},
    "": {"attention": 1e-3, "vision": 4e-3, "logits": 1e-2},
}
TIE = 1e-5


class Stopped(Exception):  # noqa: N818 - the end of a run, not an error of it
    pass


class StopsAfterOneShard(DumpControl):
    """Stops the run after a committed shard."""

    def committed(self, shard: int, *, samples: int, num_bytes: int) -> None:
        """Stop the run."""
        super().committed(shard, samples=samples, num_bytes=num_bytes)
        raise Stopped


def run(check: Check) -> None:
    """Dump every kind, then the same store three times."""
    folder = check.out / "dumps"
    job = dump_job(folder, "raw", check.device)
    teacher = load_teacher(job, job.open_teacher())
    check.figures["tf32_convolutions"] = torch.backends.cudnn.allow_tf32  # after the product has set it
    del teacher
    for kind in ("raw", "compact") if check.tiny else STORES:
        compare(check, folder, kind)
    three_times(check, folder)


def compare(check: Check, folder: Path, kind: str) -> None:
    """Compare a dump on the device with one on the CPU."""
    here, there = (
        dump_job(folder, kind, device, f"{kind}-{place}")
        for device, place in (("cpu", "here"), (check.device, "there"))
    )
    for job in (here, there):
        dump(job)
        check.expect(verify_store(Path(job.store.path), deep=True).ok, f"{job.store.path} does not verify")
    a, b = StoreReader(here.store.path), StoreReader(there.store.path)
    report = diff_stores(a, b, tolerance=math.inf, ignore=("vision_top_index", "vision_top_embeddings"))
    check.expect(
        report.matched == len(a) == len(b), f"{kind}: {report.matched} records in common of {len(a)}, {len(b)}"
    )
    bounds = BOUNDS.get(kind, BOUNDS[""])
    for found in report.fields:
        if found.max_abs is None:
            check.expect(kind == "sampled" or "logits" in found.field, f"{kind}: {found.field} differs: {found.note}")
            check.figures[f"{kind}_{found.field}"] = found.note or f"differs in {found.records} records"
        else:
            bound = bounds[found.field.split(".")[0].split("_")[0]]
            check.at_most(f"{kind}_{found.field}", found.max_abs, bound)
    if kind == "raw":
        numbers = [number for number in range(len(a)) if not same_focus(a[number], b[number])]
        check.expect(not numbers, f"{kind}: the 16 tokens of records {numbers} differ, and not by ties")


def same_focus(a: Record, b: Record) -> bool:
    """Whether the same 16 tokens were kept, except for tokens of equal score (eq. 2)."""
    if a.vision_top_index is None or b.vision_top_index is None:
        return a.vision_top_index is b.vision_top_index
    score_P = as_float32(a.attention).mean(axis=2).sum(axis=1).reshape(-1)
    scores = (score_P[index.astype(np.int64)] for index in (a.vision_top_index, b.vision_top_index))
    first_K, second_K = scores
    return bool(np.abs(first_K - second_K).max() <= TIE)


def three_times(check: Check, folder: Path) -> None:
    """Two dumps, and one that was stopped after a shard and resumed, must have equal root hashes."""
    hashes = []
    for name in ("first", "second", "resumed"):
        job = dump_job(folder, "compact", check.device, name)
        if name == "resumed":
            try:
                dump(replace(job, control=StopsAfterOneShard()))
                check.expect(False, "a dump that should have been stopped was not")
            except Stopped:
                pass
            done = len(StoreReader(job.store.path, allow_incomplete=True))
            check.figures["records_when_stopped"] = done
            check.expect(
                0 < done < len(samples()), f"{done} of {len(samples())} records were there when it was stopped"
            )
        dump(job)
        hashes.append(StoreReader(job.store.path).root_hash())
    check.figures["root_hash"] = hashes[0]
    check.expect(len(set(hashes)) == 1, f"three dumps of the same have root hashes {hashes}")
