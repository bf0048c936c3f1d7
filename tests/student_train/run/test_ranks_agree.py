"""Ranks on several machines: what each reads for itself must be the same, and the output one folder."""

import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkd.student_train.config import TrainConfig
from alignkd.student_train.distributed.ranks import Ranks, start_ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.checks.ranks_agree import OF_ONE_PROCESS, check_ranks_agree
from alignkd.student_train.run.output import claim
from alignkd.student_train.run.output.claim import claimed
from alignkd.student_train.run.output.lock import LOCK
from alignkd.student_train.run.plan import RunPlan, plan_run

HOST = socket.gethostname()


@dataclass(frozen=True)
class WithAnother(Ranks):
    """The first of two ranks; the other one, on host `there`, says what `other` makes of this one's value."""

    other: Callable[[Any], Any] = lambda value: value

    def from_first(self, value: Any) -> Any:
        return value

    def from_all(self, value: Any) -> list[Any]:
        _, *rest = value
        return [value, self.other(("there", *rest))]


def two(other: Callable[[Any], Any] = lambda value: value) -> WithAnother:
    return WithAnother(0, 2, torch.device("cpu"), other)


@pytest.fixture
def plan(many_store: Path, make_job: Callable[..., TrainJob]) -> RunPlan:
    return plan_run(make_job(many_store, learning_rate=1e-3), start_ranks())


def test_ranks_with_the_same_values_train(plan: RunPlan) -> None:
    check_ranks_agree(plan)
    check_ranks_agree(replace(plan, ranks=two()))


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("train.learning_rate", 2e-3, "0.001 for rank 0 on host"),
        ("train.checkpoint_minutes", None, "30.0 for rank 0 on host"),
        ("num_records", 7, "10 for rank 0 on host"),
        ("package torch", "1.0", " for rank 0 on host"),
    ],
)
def test_a_value_that_differs_is_named(name: str, value: object, shown: str, plan: RunPlan) -> None:
    ranks = two(lambda own: (own[0], own[1] | {name: value}))
    with pytest.raises(TrainError) as error:
        check_ranks_agree(replace(plan, ranks=ranks))
    text = str(error.value)
    assert text.startswith(f"{name} is ") and shown in text
    assert f" and {value} for rank 1 on host there; give every process the same configuration" in text


def test_what_concerns_one_process_may_differ(plan: RunPlan) -> None:
    assert TrainConfig.model_fields.keys() >= OF_ONE_PROCESS
    other = plan.config.model_copy(update={"data_workers": 3, "log_every": 5, "output": Path("elsewhere")})
    found: list[Any] = []
    for config in (plan.config, other):
        ranks = two(lambda own: found.append(own[1]) or own)
        check_ranks_agree(replace(plan, ranks=ranks, job=replace(plan.job, train=config)))
    assert found[0] == found[1]


def test_an_output_that_another_rank_does_not_see_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(TrainError) as error, claimed(output, two(lambda own: (own[0], "/local/out", False))):
        pass
    assert str(error.value) == (
        f"train.output /local/out: rank 1 on host there does not see there what rank 0 on host {HOST} has written to "
        f"{output}; give all of them the same folder, on a file system that all machines share"
    )
    with claimed(output, two()):  # and its lock is free again
        pass


def test_a_copy_of_the_output_is_not_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second rank compares the holder of the lock, which an old copy of the folder does not name."""
    monkeypatch.setattr(claim, "SECONDS_BETWEEN_TRIES_TO_SEE", 0.0)
    said: list[bool] = []

    class Second(WithAnother):
        def from_first(self, value: Any) -> Any:
            return next(answers)

        def from_all(self, value: Any) -> list[Any]:
            said.append(value[2])
            return [("there", "/out", True), value]

    mark = json.dumps({"host": "there", "pid": 7, "since": "now"}) + "\n"
    for content, sees in ((None, False), ("older", False), (mark, True)):
        answers = iter((None, mark))
        if content is not None:
            (tmp_path / LOCK).write_text(content)
        try:
            with claimed(tmp_path, Second(1, 2, torch.device("cpu"))):
                assert sees
        except TrainError:
            assert not sees
        assert said[-1] is sees
