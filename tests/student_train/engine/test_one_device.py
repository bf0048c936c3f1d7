"""The engine for one device against DeepSpeed's ZeRO-2 on one device: the same steps, but for rounding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_engines import do_step, largest_difference, load_state, small_engine, state_of
from torch import nn

from alignkd.student_train.engine import build
from alignkd.student_train.engine.engine import Engine
from alignkd.student_train.engine.loss_scale import LossScale
from alignkd.student_train.engine.one_device import engine as one_device
from alignkd.student_train.engine.one_device.engine import OneDeviceEngine
from alignkd.student_train.engine.one_device.masters import Masters
from alignkd.student_train.errors import TrainError

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


def test_float16_finds_its_scale_as_deepspeed_does_and_each_goes_on_with_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first steps overflow with the initial scale; float16 of a CPU stands for that of a GPU."""
    from alignkd.student_train.engine.zero.engine import deepspeed

    accelerator = type(deepspeed.accelerator.get_accelerator())
    monkeypatch.setattr(accelerator, "is_fp16_supported", lambda self: True)
    monkeypatch.setattr(one_device, "check_device_computes_in", lambda dtype, device: None)

    def engines() -> tuple[Engine, Engine]:
        with monkeypatch.context() as patch:
            patch.setattr(build, "uses_deepspeed", lambda config, world_size: True)
            there = small_engine(dtype=torch.float16)
            patch.setattr(build, "uses_deepspeed", lambda config, world_size: False)
            return there, small_engine(dtype=torch.float16)

    there, here = engines()
    outcomes = [[do_step(engine, step, factor=30.0) for step in range(6)] for engine in (there, here)]
    applied = [[outcome.applied for outcome in found] for found in outcomes]
    assert applied[0] == applied[1] and 2 <= applied[0].count(False) < 5
    assert [o.grad_norm for o in outcomes[1]] == pytest.approx([o.grad_norm for o in outcomes[0]], rel=1e-4)
    assert here.counters == there.counters and here.counters["cur_scale"] < 2**16
    for kind, values in state_of(there).items():
        assert largest_difference(state_of(here)[kind], values) < 1e-3, kind

    other_there, other_here = engines()
    load_state(other_there, state_of(here), here.counters)
    load_state(other_here, state_of(there), there.counters)
    after = [do_step(engine, 6, factor=30.0) for engine in (there, here, other_there, other_here)]
    assert [outcome.applied for outcome in after] == [True] * 4
    assert [o.grad_norm for o in after] == pytest.approx([after[0].grad_norm] * 4, rel=1e-3)
    assert other_there.counters == other_here.counters == there.counters == here.counters


@given(st.lists(st.booleans(), max_size=60), st.sampled_from([1, 3, 1000]))
def test_the_loss_scale_follows_the_rules_of_deepspeed(overflows: list[bool], window: int) -> None:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    own = LossScale(cur_scale=16.0)
    other = DynamicLossScaler(16.0, window, 1.0, 2, False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossScale, "WINDOW", window)
        for overflow in overflows:
            try:
                other.update_scale(overflow)
            except Exception:
                with pytest.raises(
                    TrainError, match=r"overflows even with a loss scale of 1; lower train\.learning_rate"
                ):
                    own.update(overflow=overflow)
                return
            own.update(overflow=overflow)
            assert own.counters == {name: float(getattr(other, name)) for name in own.counters}
            again = LossScale()
            again.load(own.counters)
            assert again == own


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
