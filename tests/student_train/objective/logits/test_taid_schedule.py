"""The schedule of TAID's t: the golden trajectories and a plain loop to the digit, cut at any step, and rare losses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alignkd.student_train.objective.logits.taid_schedule import TaidConfig, TaidState

GOLDEN = Path(__file__).parents[3] / "golden" / "objectives" / "taid"
TRAJECTORIES = [
    pytest.param(found, name.endswith("True"), id=f"{path.stem}-{name}")
    for path in sorted(GOLDEN.glob("*.json"))
    for name, found in json.loads(path.read_text()).items()
    if name.startswith("schedule")
]


def config_of(case: dict[str, Any], *, adaptive: bool) -> TaidConfig:
    keys = {"start": "t_start", "end": "t_end"} | ({"rate": "alpha", "momentum": "beta"} if adaptive else {})
    return TaidConfig(**{key: case[name] for key, name in keys.items()}, adaptive=adaptive)


def trajectory(config: TaidConfig, losses: list[float | None], steps: int, *, cut: int | None = None) -> list[float]:
    """t after each step; at `cut` the state goes through the text of a checkpoint."""
    state, found = TaidState.at_start(config), []
    for step, loss in enumerate(losses):
        if step == cut:
            state = TaidState.of(json.loads(json.dumps(state.document)))
        state = state.after(config, loss, progress=step / steps)
        found.append(state.t)
    return found


@pytest.mark.parametrize(("case", "adaptive"), TRAJECTORIES)
@pytest.mark.parametrize("cut", [None, 0, 1, 3, 7])
def test_the_golden_trajectories(case: dict[str, Any], adaptive: bool, cut: int | None) -> None:
    found = trajectory(config_of(case, adaptive=adaptive), case["losses"], case["num_steps"], cut=cut)
    assert found == pytest.approx(case["t_after"], rel=1e-15, abs=0)


@given(
    losses=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12),
    start=st.floats(0, 0.98),
    width=st.floats(0.01, 1),
    rate=st.floats(0, 1),
    momentum=st.floats(0, 0.999),
    adaptive=st.booleans(),
    more=st.integers(0, 20),
    cut=st.integers(0, 11),
)
def test_it_is_the_plain_loop_and_never_falls(
    losses: list[float],
    start: float,
    width: float,
    rate: float,
    momentum: float,
    adaptive: bool,
    more: int,
    cut: int,
) -> None:
    end, steps = min(1.0, start + width), len(losses) + more
    kept = {"rate": rate, "momentum": momentum} if adaptive else {}
    found = trajectory(TaidConfig(start=start, end=end, adaptive=adaptive, **kept), [*losses], steps, cut=cut)

    t, before, mean = start, math.inf, 0.0
    expected = []
    for step, loss in enumerate(losses):
        floor = start + (end - start) * step / steps
        if math.isinf(before):
            t = floor
        else:
            mean = momentum * mean + (1 - momentum) * (before - loss) / before
            rise = rate * (0.5 * (1 + math.tanh(mean / 2))) * (1 - t)
            t = min(end, max(floor, t + rise)) if adaptive else floor
        before = loss
        expected.append(t)
    assert found == pytest.approx(expected, rel=1e-9)
    assert found == sorted(found) and start <= found[0] and found[-1] <= end


@pytest.mark.parametrize("rare", [math.nan, math.inf, -math.inf, None])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_loss_that_is_not_finite_moves_t_by_the_floor_alone(rare: float | None, place: int) -> None:
    """The state is that of the steps without it; only the floor goes on."""
    config, losses = TaidConfig(start=0.1, rate=0.2), [3.0, 2.0, 2.5, 1.0, 0.5]
    state = TaidState.at_start(config)
    for step, loss in enumerate([*losses[:place], rare, *losses[place:]]):
        before, state = state, state.after(config, loss, progress=step / 6)
        if step == place:
            assert (state.loss, state.momentum) == (before.loss, before.momentum)
            assert state.t == max(before.t, config.floor(step / 6))
    without = TaidState.at_start(config)
    for step, loss in enumerate(losses):
        without = without.after(config, loss, progress=step / 6)
    assert (state.loss, state.momentum) == (without.loss, without.momentum)
    assert math.isfinite(state.t)


@pytest.mark.parametrize("adaptive", [True, False])
def test_after_the_steps_of_the_floor_t_stays_at_the_end(adaptive: bool) -> None:
    """The steps of an extension: their share of the first run's steps exceeds 1."""
    config = TaidConfig(start=0.2, end=0.9, adaptive=adaptive)
    state = TaidState.at_start(config)
    for step in range(30):
        state = state.after(config, 1.0, progress=step / 10)
        if step >= 10:
            assert state.t == 0.9


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"start": 0.8, "end": 0.5}, "start 0.8 is above end 0.5"),
        ({"start": 1.0}, "less than 1"),
        ({"momentum": 1.0}, "less than 1"),
        ({"rate": 1.5}, "less than or equal to 1"),
        ({"adaptive": False, "rate": 0.1}, "adaptive is false, so rate 0.1 is not used"),
        ({"adaptive": False, "momentum": 0.9}, "adaptive is false, so momentum 0.9 is not used"),
        ({"start": 0.6, "end": 0.6, "rate": 0.1}, "start and end are both 0.6"),
        ({"alpha": 0.1}, "alpha"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        TaidConfig(**settings)


def test_a_resolved_configuration_can_be_read_again() -> None:
    for config in (TaidConfig(), TaidConfig(adaptive=False), TaidConfig(start=0.5, end=0.5)):
        assert TaidConfig(**config.model_dump()) == config
