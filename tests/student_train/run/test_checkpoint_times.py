"""When checkpoints are due, and whose clock decides."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.run import checkpoint_times
from alignkd.student_train.run.checkpoint_times import CheckpointTimes


class LocalRanks(Ranks):
    def sum(self, values: list[float]) -> list[float]:
        return values


def due_after(monkeypatch: pytest.MonkeyPatch, minutes_per_step: float, **settings: Any) -> list[int]:
    """The steps of ten that are followed by a checkpoint."""
    now = [0.0]
    monkeypatch.setattr(checkpoint_times, "monotonic", lambda: now[0])
    times, found = CheckpointTimes(TrainConfig(output=Path("out"), steps=10, **settings)), []
    for step in range(1, 11):
        now[0] += 60 * minutes_per_step
        tally = StepTally({}, {})
        tally.gather(LocalRanks(0, 1, torch.device("cpu")), stop=False, time_is_up=times.time_is_up)
        if times.is_due(step, tally):
            found.append(step)
            times.written()
    return found


@pytest.mark.parametrize(
    ("minutes_per_step", "settings", "expected"),
    [
        (11, {}, [3, 6, 9, 10]),  # every 30 minutes unless told otherwise
        (1, {}, [10]),
        (11, {"checkpoint_every": 4}, [3, 4, 7, 8, 10]),  # minutes count from any checkpoint
        (11, {"checkpoint_minutes": None}, [10]),
        (11, {"checkpoint_minutes": 0, "checkpoint_every": 5}, [5, 10]),
        (1, {"checkpoint_minutes": 2.5}, [3, 6, 9, 10]),
    ],
)
def test_checkpoints_are_due_by_steps_and_by_minutes(
    minutes_per_step: float, settings: dict[str, Any], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert due_after(monkeypatch, minutes_per_step, **settings) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_ranks_clock_decides(rank: int) -> None:
    """Clocks differ, and a checkpoint is collective: a rank that went alone would wait for ever."""
    tally = StepTally({}, {})
    tally.gather(LocalRanks(rank, 2, torch.device("cpu")), stop=False, time_is_up=True)
    assert tally.time_is_up == (rank == 0) and not tally.stopped
