"""When checkpoints are due, and whose clock decides."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkd.student_train.checkpoints import times as checkpoint_times
from alignkd.student_train.checkpoints.times import CheckpointTimes
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.objective.tally import StepTally


class LocalRanks(Ranks):
    def sum(self, values: list[float]) -> list[float]:
        return values


def times_of(*, num_samples: int = 1000, global_batch: int = 4, **settings: Any) -> CheckpointTimes:
    config = TrainConfig(output=Path("out"), steps=10, **settings)
    return CheckpointTimes(config, num_samples=num_samples, global_batch=global_batch)


def due_after(monkeypatch: pytest.MonkeyPatch, minutes_per_step: float, **settings: Any) -> list[int]:
    """The steps of ten that are followed by a checkpoint."""
    now = [0.0]
    monkeypatch.setattr(checkpoint_times, "monotonic", lambda: now[0])
    times, found = times_of(**settings), []
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
        (1, {"keep_every": 4}, [4, 8, 10]),
        (1, {"keep_every": 4, "checkpoint_every": 3}, [3, 4, 6, 8, 9, 10]),
        (1, {"keep_each_epoch": True, "num_samples": 10}, [3, 5, 8, 10]),  # 12, 20, 32 and 40 of 10, 20, 30, 40
        (16, {"keep_each_epoch": True, "num_samples": 12}, [2, 3, 5, 6, 8, 9, 10]),
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


@given(num_samples=st.integers(1, 60), global_batch=st.integers(1, 60))
def test_an_epoch_ends_in_the_step_that_takes_its_last_sample(num_samples: int, global_batch: int) -> None:
    """By the samples that the order gives out: the last one of a pass is in the batch of the step that ends it."""
    times = times_of(num_samples=num_samples, global_batch=global_batch, keep_each_epoch=True)
    taken = [[(step * global_batch + n) for n in range(global_batch)] for step in range(10)]
    ends = [step for step, batch in enumerate(taken, start=1) if any((n + 1) % num_samples == 0 for n in batch)]
    assert [step for step in range(1, 11) if times.is_kept(step)] == ends
