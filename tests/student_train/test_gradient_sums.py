"""Gradients of many micro-batches are added up in float32 by the real engine, whatever the dtype of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.objective import DistilledStudent
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.trainer import train

MICRO_BATCHES, WIDTH = 16, 64


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows_ND: Tensor) -> Tensor:
        return cast(Tensor, self.model(rows_ND)).float().square().sum()


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("in_float32", "least", "most"), [(True, 0.0, 1e-7), (False, 1e-3, 1e-1)])
def test_sums_are_as_exact_as_their_dtype(
    in_float32: bool, least: float, most: float, offload: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = Layer()
    config = TrainConfig(
        output=tmp_path, steps=1, micro_batch=1, global_batch=MICRO_BATCHES, gradient_clip=0,
        offload_optimizer=offload, float32_gradients=in_float32,
    )  # fmt: skip
    engine = Engine(cast(DistilledStudent, module), config, dtype=torch.bfloat16, ranks=start_ranks())
    optimizer, summed = engine._optimizer, list[Tensor]()
    step = optimizer._optimizer_step

    def note(group: int) -> Any:
        summed.append(optimizer.single_partition_of_fp32_groups[group].grad.double())
        return step(group)

    optimizer._optimizer_step = note
    exact = torch.zeros(WIDTH * WIDTH + WIDTH, dtype=torch.float64)
    for _ in range(MICRO_BATCHES):
        rows_ND = torch.randn(4, WIDTH).to(torch.bfloat16)
        own = torch.autograd.grad(module(rows_ND), list(module.parameters()))
        exact += torch.cat([gradient.flatten() for gradient in own]).double()
        engine.backward(engine._deepspeed(rows_ND))
        engine.end_micro_batch(1.0)
    error = (summed[0][: len(exact)] - exact).norm() / exact.norm()
    assert least <= error < most


def test_a_step_that_is_not_finite_leaves_no_trace_in_the_sums(
    many_store: Path,
    make_job: Callable[..., TrainJob],
    read_metrics: Callable[[Path], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Offloaded, in bfloat16: the flat buffer of the skipped step is not the next one's."""
    original, calls = StepTally.add, [0]

    def poisoned(self: StepTally, terms: Any) -> Tensor:
        calls[0] += 1
        return original(self, terms) * (float("nan") if calls[0] == 3 else 1.0)

    monkeypatch.setattr(StepTally, "add", poisoned)
    job = make_job(
        many_store, steps=3, micro_batch=2, global_batch=4, dtype="bfloat16", offload_optimizer=True,
        checkpoint_every=1, keep_checkpoints=3,
    )  # fmt: skip
    assert train(job).skipped_steps == 1
    assert [line["skipped"] for line in read_metrics(job.train.output)] == [False, True, False]
    first, second, third = (
        [path.read_bytes() for path in sorted(folder.glob("*.safetensors"))]
        for folder in sorted((job.train.output / "checkpoints").iterdir())
    )
    assert len(first) == 3
    assert first == second != third
