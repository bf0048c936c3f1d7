"""The engine for one device against DeepSpeed's ZeRO-2 on one device: the same steps, but for rounding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_engines import do_step, largest_difference, small_engine, state_of
from torch import nn

from alignkd.student_train.engine import build
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.engine.one_device.masters import Masters

STEPS, SKIPPED = 5, 3
# Largest relative difference of weights and moments after all steps.
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


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True), min_size=1))
def test_a_bfloat16_weight_and_its_rest_are_the_float32_weight(numbers: list[float]) -> None:
    """Bit for bit, but for the last bit of what is half-way between two bfloat16 numbers and rounded towards zero."""
    values = torch.tensor([*numbers, 1.0 + 2**-8, -1.0 - 2**-8, 1.0 + 3 * 2**-8])
    values = values[values.abs() < 3e38]  # larger ones round to infinity
    weight = nn.Parameter(torch.zeros(len(values), dtype=torch.bfloat16))
    masters = Masters([weight])
    masters.set(weight, values)
    assert torch.equal(weight, values.bfloat16())
    lost = values.view(torch.int32) - masters.values(weight).view(torch.int32)
    halfway = (values - values.bfloat16().float()).abs() == (values - other_neighbour(values)).abs()
    assert ((lost == 0) | ((lost == 1) & halfway)).all() and lost[-3:].tolist() == [1, 1, 0]
    kept = masters.values(weight)
    masters.open(weight)
    assert torch.equal(masters.holder(weight).view(torch.int32), kept.view(torch.int32))
    masters.close(weight)
    assert masters.holder(weight).numel() == 0
    masters.set(weight, kept)  # as from a checkpoint
    assert torch.equal(masters.values(weight).view(torch.int32), kept.view(torch.int32))


def other_neighbour(values: torch.Tensor) -> torch.Tensor:
    """The bfloat16 number on the other side of a value, in float32."""
    nearest = values.bfloat16().float().view(torch.int32)
    step = torch.where(values.view(torch.int32) > nearest, 1 << 16, -(1 << 16))
    return (nearest + step.int()).view(torch.float32)
