"""Time of an optimiser step by each engine and optimiser, of micro-batches of a few rows, and device memory on CUDA.

    python benchmarks/optimizer_step.py [--millions 12] [--micro-batches 4] [--rounds 9]

The engines do one step each in turn, so ratios compare the same time. The network is a stack of linear layers in
bfloat16 whose forward and backward passes of four rows cost little beside the optimiser. DeepSpeed runs with one
process. `--millions 1370` is a student of 1.7B on a GPU.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import click
import torch
from cases.measuring import machine
from torch import Tensor, nn

from alignkd.student_train.config import OptimizerName, TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine import build
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.objective.objective import DistilledStudent

WIDTH, ROWS = 1024, 4
# name -> optimiser, and whether DeepSpeed is used where plain torch would be
ENGINES: dict[str, tuple[OptimizerName, bool]] = {
    "DeepSpeed, adamw": ("adamw", True),
    "plain torch, adamw": ("adamw", False),
    "plain torch, adamw_8bit": ("adamw_8bit", False),
    "DeepSpeed, adamw_8bit": ("adamw_8bit", True),
    "DeepSpeed, adamw_offload": ("adamw_offload", True),
}


class _Layers(nn.Sequential):
    projector_prefixes: tuple[str, ...] = ()


class Stack(nn.Module):
    """Linear layers of so many million parameters."""

    def __init__(self, millions: float) -> None:
        super().__init__()
        count = max(1, round(millions * 1e6 / WIDTH**2))
        self.model = _Layers(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(count)))

    def start_step(self, step: int, *, seed: int) -> None:
        """Nothing depends on the step."""

    def forward(self, rows_ND: Tensor) -> Tensor:
        """A loss, float32."""
        loss: Tensor = self.model(rows_ND).float().square().mean()
        return loss


@click.command()
@click.option("--millions", default=12.0, show_default=True, help="Trained parameters.")
@click.option("--micro-batches", default=4, show_default=True)
@click.option("--rounds", default=9, show_default=True, help="Timed steps of each; two more warm up.")
@click.option("--engine", "names", type=click.Choice(list(ENGINES)), multiple=True, help="Only these; default all.")
def main(millions: float, micro_batches: int, rounds: int, names: tuple[str, ...]) -> None:
    """Print seconds of a step of each engine, and the ratio to the first one."""
    print(f"{machine()}\n\n| engine | ms per step | ratio | device memory, MiB |\n|:--|--:|--:|--:|", flush=True)
    engines, memory = {}, {}
    for name in names or ENGINES:
        before = allocated()
        with chosen(ENGINES[name][1]):
            engines[name] = engine_of(ENGINES[name][0], millions, micro_batches)
        step(engines[name], 0, micro_batches)
        memory[name] = allocated() - before
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 2):
        for name, engine in engines.items():
            seconds[name].append(step(engine, number, micro_batches))
    first = statistics.median(next(iter(seconds.values()))[2:])
    for name, found in seconds.items():
        median = statistics.median(found[2:])
        shown = f"{memory[name] / 2**20:.0f}" if memory[name] else ""
        print(f"| {name} | {1000 * median:.1f} | {median / first:.2f} | {shown} |")


@contextmanager
def chosen(by_deepspeed: bool) -> Iterator[None]:
    """`build_engine` takes DeepSpeed or plain torch."""
    with patch.object(build, "uses_deepspeed", lambda config, world_size: by_deepspeed):
        yield


def engine_of(optimizer: OptimizerName, millions: float, micro_batches: int) -> Engine:
    """An engine of a fresh stack."""
    torch.manual_seed(0)
    config = TrainConfig(output=Path(), steps=1, micro_batch=1, global_batch=micro_batches, optimizer=optimizer)
    student = cast(DistilledStudent, Stack(millions))
    return build.build_engine(student, config, dtype=torch.bfloat16, ranks=start_ranks())


def step(engine: Engine, number: int, micro_batches: int) -> float:
    """Seconds of an optimiser step: processor time on a CPU, the clock's on a GPU."""
    rows_ND: Any = torch.randn(ROWS, WIDTH).to(torch.bfloat16)
    started = now(engine)
    engine.start_step(number, micro_batches=micro_batches)
    for _ in range(micro_batches):
        engine.backward(cast(Tensor, engine(cast(TrainBatch, rows_ND))))
        engine.end_micro_batch(1.0)
    return now(engine) - started


def now(engine: Engine) -> float:
    """The time after all work that was queued."""
    if engine.ranks.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def allocated() -> int:
    """Bytes of CUDA memory; 0 on a CPU."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


if __name__ == "__main__":
    main()
