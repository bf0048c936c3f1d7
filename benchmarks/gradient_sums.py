"""Error of the engine's sum of many gradients, against a float64 sum of the same gradients.

    python benchmarks/gradient_sums.py

The gradients themselves are bfloat16; only the dtype of the sum differs (`train.float32_gradients`).
"""

import os
from pathlib import Path
from typing import Any, cast

if __name__ == "__main__":  # before deepspeed is imported
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from torch import Tensor, nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.data.batch import TrainBatch
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.build import build_engine
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.optimizers.moments import MomentOptimizer
from alignkd.student_train.objective.objective import DistilledStudent

WIDTH, ROWS = 256, 4


class _Layers(nn.Sequential):
    projector_prefixes: tuple[str, ...] = ()


class TwoLayers(nn.Module):
    """A model large enough for a gradient with many different magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        self.model = _Layers(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def start_step(self, step: int, *, seed: int) -> None:
        """Nothing depends on the step."""

    def forward(self, rows_ND: Tensor) -> Tensor:
        """A loss, float32."""
        loss: Tensor = self.model(rows_ND).float().square().sum()
        return loss


def relative_error(micro_batches: int, *, float32_gradients: bool, offload: bool) -> float:
    """Norm of the difference between the engine's sum and a float64 sum, divided by the norm of the latter."""
    torch.manual_seed(0)
    module = TwoLayers()
    config = TrainConfig(
        output=Path(), steps=1, micro_batch=1, global_batch=micro_batches, gradient_clip=0,
        optimizer="adamw_offload" if offload else "adamw", float32_gradients=float32_gradients,
    )  # fmt: skip
    engine = build_engine(cast(DistilledStudent, module), config, dtype=torch.bfloat16, ranks=start_ranks())
    optimizer, summed = optimizer_of(engine), list[Tensor]()
    step = optimizer.step

    def note() -> None:
        summed.extend(value.grad.double().flatten() for group in optimizer.param_groups for value in group["params"])
        step()

    cast(Any, optimizer).step = note
    exact = torch.zeros(sum(parameter.numel() for parameter in module.parameters()), dtype=torch.float64)
    engine.start_step(0, micro_batches=micro_batches)
    for _ in range(micro_batches):
        rows_ND = torch.randn(ROWS, WIDTH).to(torch.bfloat16)
        own = torch.autograd.grad(module(rows_ND) / micro_batches, list(module.parameters()))
        exact += torch.cat([gradient.flatten() for gradient in own]).double()
        engine.backward(engine(cast(TrainBatch, rows_ND)) / micro_batches)
        engine.end_micro_batch(1.0)
    return float((torch.cat(summed)[: len(exact)] - exact).norm() / exact.norm())


def optimizer_of(engine: Engine) -> MomentOptimizer:
    """The optimiser of torch in an engine: of the weights themselves, or of DeepSpeed's flat partitions."""
    found: MomentOptimizer = getattr(engine, "_inner", None) or engine._optimizer  # type: ignore[attr-defined]
    return found


def main() -> None:
    """Print a row per number of micro-batches."""
    print("| micro-batches | float32, device | float32, offloaded | bfloat16, device | bfloat16, offloaded |")
    print("|--:|--:|--:|--:|--:|")
    for count in (1, 4, 16, 64):
        found = [relative_error(count, float32_gradients=f, offload=o) for f in (True, False) for o in (False, True)]
        print(f"| {count} | " + " | ".join(f"{error:.1e}" for error in found) + " |", flush=True)


if __name__ == "__main__":
    main()
