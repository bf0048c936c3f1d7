"""The real shapes on this machine: a 7B teacher pass, then 1.7B student steps, with random weights.

    python benchmarks/real_shape.py --out DIR [--device cuda] [--teacher MobileVLM_V2-7B] [--student MobileVLM_V2-1.7B]

Each phase runs in its own process, so that peaks are separate. Checkpoints are written in the official layout
(about 17 GB of disk at bfloat16), loaded by the code that loads real ones, and the dump is `alignkd dump`'s own
function. The training loop is the trainer's without checkpoints and export, which write three float32 tensors per
parameter and affect neither memory nor speed.

AdamW's moments take 8 bytes per trained parameter. On a CPU they are kept in memory-mapped files (`--optimizer-state
disk`): the arithmetic is the same, the steps are slower, and 24 GB are enough.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL
from alignkd.student_train.data.division import Divisions
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.engine.optimizers.moments import MOMENTS
from alignkd.student_train.objective.counts import GlobalCounts
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.run.plan import micro_batches, open_samples
from alignkd.student_train.run.student import build_student
from alignkd.teacher_dump.dump import dump
from alignkd.vlm.families.mobilevlm.model.config import load_config
from alignkd.vlm.families.mobilevlm.model.mobilevlm import MobileVLM
from alignkd.vlm.families.mobilevlm.model.sizes import official_config

SHARD_BYTES = 2 << 30
NOISE = 1 << 20
QUESTION = "<image>\nWhich digit is written here, and how sure can one be of it?"
ANSWER = (
    "It is a {digit}, written by hand; the strokes leave little doubt that it is a {digit}, whatever else they say."
)
PHASES = ("checkpoints", "dump", "train")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for checkpoints, data and store.")
@click.option("--teacher", default="MobileVLM_V2-7B", show_default=True)
@click.option("--student", default="MobileVLM_V2-1.7B", show_default=True)
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--steps", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--batch", type=click.IntRange(min=1), default=2, show_default=True, help="Samples per forward.")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--optimizer-state", type=click.Choice(["memory", "disk"]), help="Default: disk on a CPU.")
@click.option("--phase", type=click.Choice(PHASES), multiple=True, help="Only these; default all.")
@click.option("--one", type=click.Choice(PHASES), hidden=True)
def main(**options: Any) -> None:
    """Measure peak memory and time of each phase at real shapes."""
    options["optimizer_state"] = options["optimizer_state"] or ("disk" if options["device"] == "cpu" else "memory")
    chosen, one = options.pop("phase") or PHASES, options.pop("one")
    if one is not None:
        print(json.dumps(run_phase(one, **options)))
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for phase in chosen:
        command = [sys.executable, __file__, "--one", phase, *sys.argv[1:]]
        finished = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
        if finished.returncode:
            sys.exit(f"phase {phase} ended with {finished.returncode}")
        report = json.loads(finished.stdout.splitlines()[-1])
        print(f"{phase}: " + ", ".join(f"{name} {value}" for name, value in report.items()), flush=True)


def run_phase(
    phase: str, *, out: Path, optimizer_state: str, teacher: str, student: str, **options: Any
) -> dict[str, Any]:
    """Run one phase in this process and return its figures."""
    started = time.monotonic()
    if phase == "checkpoints":
        found = {name: write_checkpoint(out / name, name) for name in (teacher, student)}
        write_data(out, options["samples"])
    elif phase == "dump":
        found = measure_dump(run_config(out, teacher, student, **options))
    else:
        found = measure_train(run_config(out, teacher, student, **options), optimizer_state)
    return {**found, "seconds": round(time.monotonic() - started, 1), **peak_memory()}


def run_config(
    out: Path, teacher: str, student: str, *, samples: int, steps: int, batch: int, device: str
) -> RunConfig:
    """The configuration of both phases, as a user would write it."""
    return RunConfig.model_validate(
        {
            "data": {"conversations": out / "data.json", "images": out / "images"},
            # the checks of a teacher before its first shard would be additional forward passes
            "teacher": {
                "checkpoint": str(out / teacher),
                "dtype": "bfloat16",
                "batch": batch,
                "device": device,
                "sanity": "off",
            },
            "student": {"checkpoint": str(out / student), "dtype": "bfloat16"},
            "store": {"path": out / "store", "shard_size": samples},
            "train": {"output": out / "run", "steps": steps, "micro_batch": batch, "preset": "paper"},
        }
    )


def measure_dump(config: RunConfig) -> dict[str, Any]:
    """Measure the teacher pass, including loading."""
    result = dump(config.dump_job())
    size = sum(file.stat().st_size for file in config.store.path.rglob("*") if file.is_file())
    return {
        "records": result.num_records,
        "store MB per record": round(size / 1e6 / result.num_records, 2),
        "dump seconds": round(result.seconds, 1),
    }


def measure_train(config: RunConfig, state: str) -> dict[str, Any]:
    """Measure a few optimiser steps, including data and targets."""
    job, ranks = config.train_job(), start_ranks()
    dataset = open_samples(job, job.open_student())
    from alignkd.storage import SampleOrder

    order = SampleOrder(len(dataset), job.train.seed, job.train.global_batch_size(ranks.world_size))
    divisions = Divisions(order, dataset.lengths, job.train.micro_batch_limit, ranks.world_size)
    batches = micro_batches(dataset, divisions, job.train, ranks, first_step=0)
    student = build_student(job, job.open_student(), dataset.reader)
    counts = GlobalCounts([dataset.reader], student.model.config, job.train.losses.weights)
    engine = build_engine(student, job.train, dtype=job.torch_dtype, ranks=ranks)
    assert isinstance(engine, OneDeviceEngine)
    trained = sum(weight.numel() for weight in student.parameters() if weight.requires_grad)
    seconds, losses = [], []
    with tempfile.TemporaryDirectory(dir=job.train.output.parent) as folder:
        if state == "disk":
            optimizer_state_on_disk(engine, Path(folder))
        for step in range(job.train.steps):
            started = time.monotonic()
            tally = StepTally(job.train.losses.weights, counts(order.global_batch_indices(step)))
            engine.start_step(step, micro_batches=1)
            engine.backward(tally.add(engine(next(batches))))
            engine.end_micro_batch(1.0)
            tally.gather(ranks, stop=False)
            seconds.append(round(time.monotonic() - started, 1))
            losses.append(round(tally.loss, 3))
    return {"trained parameters": trained, "losses": losses, "step seconds": seconds}


def optimizer_state_on_disk(engine: OneDeviceEngine, folder: Path) -> None:
    """Put AdamW's moments into memory-mapped files, so that the kernel can evict them."""
    for number, state in enumerate(engine._optimizer.state.values()):
        for kind in MOMENTS:
            state[kind] = _mapped(folder / f"{kind}-{number}", state[kind])


def _mapped(path: Path, values: Tensor) -> Tensor:
    """The values in a new file."""
    path.touch()
    os.truncate(path, values.nbytes)
    found = torch.from_file(str(path), shared=True, size=values.numel(), dtype=values.dtype).view(values.shape)
    return found.copy_(values)


def write_checkpoint(folder: Path, name: str) -> str:
    """Write a checkpoint with the shape of an official model; return its size."""
    return write_random_checkpoint(folder, official_config(name))


def write_random_checkpoint(folder: Path, raw: dict[str, Any]) -> str:
    """Write random bfloat16 weights for the shape in `config.json`, shard by shard; return the size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(TOKENIZER_MODEL.read_bytes())
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in MobileVLM(load_config(folder)).state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(NOISE, generator=generator) * 0.02).to(torch.bfloat16)
    weight_map: dict[str, str] = {}
    pending: dict[str, Tensor] = {}
    total = number = 0
    for key, shape in shapes.items():
        pending[key] = _random(key, shape, noise)
        total += pending[key].nbytes
        if sum(value.nbytes for value in pending.values()) >= SHARD_BYTES or key == list(shapes)[-1]:
            number += 1
            file = f"model-{number:05d}.safetensors"
            save_file(pending, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(pending, file)
            pending = {}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return f"{total / 1e9:.2f} GB"


def _random(key: str, shape: tuple[int, ...], noise: Tensor) -> Tensor:
    """Norm weights of 1; all other weights are one array of noise from different offsets, which saves minutes of draws.

    The offset depends on the name, so models with the same shape of tower share the tower, as teacher and student do.
    """
    if "norm" in key and key.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    size = int(np.prod(shape))
    return noise.roll(zlib.crc32(key.encode()) % NOISE).repeat(-(-size // NOISE))[:size].reshape(shape)


def write_data(out: Path, samples: int) -> None:
    """Write pictures of real handwriting with one question each."""
    entries = []
    for number, digit in enumerate(write_digits(out / "images", samples)):
        answer = ANSWER.format(digit=digit)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": answer}]
        entries.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (out / "data.json").write_text(json.dumps(entries), encoding="utf-8")


def write_digits(folder: Path, count: int) -> list[int]:
    """Write pictures of handwritten digits, `0.png` and so on; return the digits."""
    digits = load_digits()
    folder.mkdir(exist_ok=True)
    for number in range(count):
        picture = Image.fromarray((digits.images[number] * 15).astype(np.uint8)).resize((336, 336))
        picture.save(folder / f"{number}.png")
    return [int(digit) for digit in digits.target[:count]]


def peak_memory() -> dict[str, str]:
    """Peak memory of this process: on the host, and on the GPU if there is one."""
    found = {"peak host memory": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"}
    if torch.cuda.is_available():
        found["peak GPU memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    return found


if __name__ == "__main__":
    main()
