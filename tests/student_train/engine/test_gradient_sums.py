"""Gradients of many micro-batches are added up in float32 by the real engine, whatever the dtype of the weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradient_sums import relative_error
from torch import Tensor

from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.trainer import train


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize(("in_float32", "least", "most"), [(True, 0.0, 1e-7), (False, 1e-3, 1e-1)])
def test_sums_are_as_exact_as_their_dtype(in_float32: bool, least: float, most: float, offload: bool) -> None:
    error = relative_error(16, float32_gradients=in_float32, offload=offload)
    assert least <= error < most


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_offload"])
def test_a_step_that_is_not_finite_leaves_no_trace_in_the_sums(
    optimizer: str,
    many_store: Path,
    make_job: Callable[..., TrainJob],
    read_metrics: Callable[[Path], list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16: the sums of the skipped step are not part of the next one's."""
    original, calls = StepTally.add, [0]

    def poisoned(self: StepTally, terms: Any) -> Tensor:
        calls[0] += 1
        return original(self, terms) * (float("nan") if calls[0] == 3 else 1.0)

    monkeypatch.setattr(StepTally, "add", poisoned)
    job = make_job(
        many_store, steps=3, micro_batch=2, global_batch=4, dtype="bfloat16", optimizer=optimizer,
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
