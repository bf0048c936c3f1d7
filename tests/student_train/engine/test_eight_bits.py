"""Moments in 8 bits: what bitsandbytes keeps can be read and set again, and training stays near that in float32."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engines import INNER, VOCABULARY, WIDTH, do_step, largest_difference, load_state, small_engine, state_of
from torch import Tensor

from alignkd.student_train.engine import build
from alignkd.student_train.engine.optimizers.adamw_8bit import AdamW8bit
from alignkd.student_train.engine.optimizers.blocks import BLOCK, Blocks, quantize
from alignkd.student_train.engine.optimizers.moments import MOMENTS

pytest.importorskip("bitsandbytes")


def stepped(gradients: list[Tensor]) -> AdamW8bit:
    """The optimiser after steps with these gradients of one parameter, made by the kernels of bitsandbytes."""
    parameter = torch.zeros_like(gradients[0])
    optimizer = AdamW8bit([{"params": [parameter], "lr": 1e-3, "moment_bits": 8}], weight_decay=0.0)
    optimizer.create_state(optimizer.param_groups[0], [parameter])
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    return optimizer


@st.composite
def gradients(draw: st.DrawFn) -> list[Tensor]:
    """Gradients of several steps: other magnitudes in each block, whole blocks of zeros, one sign alone."""
    count = draw(st.integers(4096, 4096 + 3 * BLOCK))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    magnitudes = 10.0 ** torch.randint(-12, 4, (-(-count // BLOCK),), generator=generator).repeat_interleave(BLOCK)
    found = []
    for _ in range(draw(st.integers(1, 3))):
        gradient = torch.randn(count, generator=generator) * magnitudes[:count]
        sign = draw(st.sampled_from([0, -1, 1]))
        gradient = gradient.abs() * sign if sign else gradient
        gradient[: draw(st.sampled_from([0, BLOCK, BLOCK + 5]))] = 0
        found.append(gradient)
    return found


@settings(max_examples=60, deadline=None)
@given(gradients(), st.integers(1, 5000))
def test_values_give_the_same_codes_again(steps: list[Tensor], cut: int) -> None:
    """Read, written in two pieces, read: bit for bit. The kernels chose the scales, some by a negative value."""
    optimizer = stepped(steps)
    ((parameter, state),) = optimizer.state.items()
    for kind in MOMENTS:
        kept: Blocks = state[kind]
        values = optimizer.moment(parameter, kind, 0, len(parameter))
        again = Blocks(len(parameter), kept.levels)
        again.write([(0, values[:cut]), (min(cut, len(values)), values[cut:])])
        assert torch.equal(again.read(0, len(values)), values)
        assert torch.equal(again.scales, kept.scales)
        assert torch.equal(kept.read(cut % 300, 500), values[cut % 300 :][:500])


def test_blocks_with_a_negative_maximum_are_met() -> None:
    """The case for which the scale is no magnitude of a value."""
    torch.manual_seed(0)
    kept: Blocks = next(iter(stepped([torch.randn(1 << 15)]).state.values()))[MOMENTS[0]]
    rows = kept.read(0, 1 << 15).view(-1, BLOCK)
    lowest = rows.amin(1) == -rows.abs().amax(1)
    assert 0.2 < lowest.float().mean() < 0.8
    assert (kept.scales[lowest] > rows.abs().amax(1)[lowest]).all()
    assert torch.equal(kept.scales[~lowest], rows.abs().amax(1)[~lowest])


@given(st.integers(0, 2**30), st.integers(1, 3 * BLOCK))
def test_any_values_are_rounded_to_the_nearest_level(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    kept: Blocks = next(iter(stepped([torch.randn(4096)]).state.values()))[MOMENTS[0]]
    codes, scales = quantize(values, kept.levels)
    scale = scales.repeat_interleave(BLOCK)[:count]
    error = (kept.levels[codes.int()] * scale - values).abs()
    every = (kept.levels * scale[:, None] - values[:, None]).abs().amin(1)
    assert (error <= every + 1e-6 * scale).all()
    assert float(error.max()) < 0.04 * float(values.abs().max())


def test_pieces_may_leave_gaps() -> None:
    """Partitions of ZeRO are padded between tensors."""
    levels = next(iter(stepped([torch.randn(4096)]).state.values()))[MOMENTS[0]].levels
    blocks, values = Blocks(1000, levels), torch.randn(600)
    blocks.codes.fill_(7)
    blocks.write([(100, values[:200]), (350, values[200:])])
    whole = torch.zeros(1000)
    whole[100:300], whole[350:750] = values[:200], values[200:]
    assert float((blocks.read(0, 1000) - whole).abs().max()) < 0.02 * float(whole.abs().max())
    assert (blocks.read(0, 100) == 0).all() and (blocks.read(750, 250) == 0).all()


# Largest relative difference of the weights' change to that with moments in float32, after STEPS steps. Measured: 0.02,
# in bfloat16 0.05.
STEPS, BOUND = 20, 0.08


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_steps_are_near_those_in_float32(dtype: torch.dtype, micro_batches: int) -> None:
    """The error is that of the moments; where they are float32 (embeddings, small tensors) it is the weights' alone."""
    start = state_of(small_engine(dtype=dtype))["weights"]
    found = {}
    for optimizer in ("adamw", "adamw_8bit"):
        engine = small_engine(dtype=dtype, optimizer=optimizer, global_batch=micro_batches)
        for step in range(STEPS):
            assert do_step(engine, step, micro_batches=micro_batches).applied
        found[optimizer] = state_of(engine)
    change = {
        kind: {name: value - start[name] for name, value in state["weights"].items()} for kind, state in found.items()
    }
    difference = largest_difference(change["adamw_8bit"], change["adamw"])
    assert 1e-6 < difference < BOUND
    for kind in MOMENTS:
        assert 1e-6 < largest_difference(found["adamw_8bit"][kind], found["adamw"][kind]) < 4 * BOUND


def test_embeddings_and_small_tensors_keep_float32() -> None:
    engine = small_engine(optimizer="adamw_8bit")
    do_step(engine, 0)
    names = {id(value): name for name, value in engine.student.named_parameters()}
    in_8_bits = {
        names[id(parameter)].removeprefix("model.")
        for parameter, state in engine._optimizer.state.items()  # type: ignore[attr-defined]
        if isinstance(state[MOMENTS[0]], Blocks)
    }
    assert WIDTH * WIDTH < 4096 < min(WIDTH * INNER, VOCABULARY * WIDTH)
    assert in_8_bits == {"first.weight", "second.weight"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resumed_is_unbroken(dtype: torch.dtype) -> None:
    """Bit for bit: weights, moments, and what follows."""
    settings: dict[str, Any] = {"dtype": dtype, "optimizer": "adamw_8bit"}
    unbroken = small_engine(**settings)
    for step in range(3):
        do_step(unbroken, step)
    resumed = small_engine(**settings)
    do_step(resumed, 7)
    load_state(resumed, state_of(unbroken), unbroken.counters)
    for step in range(3, 6):
        assert do_step(resumed, step) == do_step(unbroken, step)
    for kind, values in state_of(unbroken).items():
        assert all(torch.equal(state_of(resumed)[kind][name], value) for name, value in values.items()), kind


def test_flat_partitions_of_zero_are_as_near_and_resume_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-2 in one process: blocks go across tensors, but not into those that keep float32."""
    start = state_of(small_engine())["weights"]
    reference = small_engine()
    monkeypatch.setattr(build, "uses_deepspeed", lambda config, world_size: True)
    engine = small_engine(optimizer="adamw_8bit")
    for step in range(STEPS):
        assert do_step(engine, step).applied == do_step(reference, step).applied
    state = state_of(engine)
    changes = [
        {name: value - start[name] for name, value in weights.items()}
        for weights in (state["weights"], state_of(reference)["weights"])
    ]
    assert 1e-6 < largest_difference(*changes) < BOUND
    resumed = small_engine(optimizer="adamw_8bit")
    load_state(resumed, state, engine.counters)
    assert do_step(resumed, STEPS) == do_step(engine, STEPS)
    for kind, values in state_of(engine).items():
        assert all(torch.equal(state_of(resumed)[kind][name], value) for name, value in values.items()), kind
