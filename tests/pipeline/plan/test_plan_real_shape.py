"""The plan of a training step of MobileVLM V2 1.7B, against the tensors that the product's code allocates for it."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.mark.parametrize(("samples", "length", "checkpointing"), [(1, 512, False), (4, 512, True)])
def test_the_plan_is_what_a_step_allocates(
    samples: int, length: int, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's device `meta`: nothing is computed."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import step_memory

    pair, case = step_memory.real_pair(), step_memory.TrainingCase("adamw_8bit", samples, length, checkpointing)
    assert step_memory.counted(pair, case) == pytest.approx(case.planned(pair, "meta").peak, rel=0.02)
