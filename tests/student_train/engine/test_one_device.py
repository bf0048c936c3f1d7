"""The engine for one device against DeepSpeed's ZeRO-2 on one device: the same steps, but for rounding."""

from typing import Any

import pytest
import torch
from small_engines import do_step, largest_difference, small_engine, state_of

from alignkd.student_train.engine import build
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine

STEPS, SKIPPED = 5, 3
# Largest relative difference of weights and moments after all steps. bfloat16: of one step's rounding.
BOUNDS = {torch.float32: 2e-6, torch.bfloat16: 1e-5}


@pytest.fixture
def by_deepspeed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Inside its context, `build_engine` takes DeepSpeed for one device, too."""
    monkeypatch.setattr(build, "uses_deepspeed", lambda config, world_size: True)
    return monkeypatch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize(
    "settings", [{"gradient_clip": 0}, {"gradient_clip": 0.05}, {"float32_gradients": False, "gradient_clip": 1.0}]
)
def test_steps_are_those_of_deepspeed(
    dtype: torch.dtype, micro_batches: int, settings: dict[str, Any], by_deepspeed: pytest.MonkeyPatch
) -> None:
    """Three groups, one skipped step, with and without clipping."""
    results = {}
    for name in ("deepspeed", "one device"):
        engine = small_engine(dtype=dtype, global_batch=micro_batches, **settings)
        assert isinstance(engine, OneDeviceEngine) is (name == "one device")
        outcomes = [
            do_step(engine, step, micro_batches=micro_batches, factor=float("nan") if step == SKIPPED else 1.0)
            for step in range(STEPS)
        ]
        computing = {name: value.detach().float() for name, value in engine.student.named_parameters()}
        results[name] = outcomes, state_of(engine), computing, engine.counters
        frequencies = engine.student.model.get_buffer("frequencies")
        assert frequencies.dtype == torch.float32
        by_deepspeed.undo()
    (there, expected, weights, counters), (here, found, own, own_counters) = results.values()
    assert [outcome.applied for outcome in here] == [step != SKIPPED for step in range(STEPS)]
    assert [outcome.applied for outcome in there] == [outcome.applied for outcome in here]
    assert [o.grad_norm for o in here] == pytest.approx([o.grad_norm for o in there], rel=1e-6)
    assert own_counters == counters == {"adam_step": STEPS - 1}
    for kind, values in expected.items():
        assert largest_difference(found[kind], values) < BOUNDS[dtype], kind
    assert largest_difference(own, weights) < 10 * BOUNDS[dtype]
