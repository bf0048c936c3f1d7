"""wandb (offline) and trackio (local) have the figures of metrics.jsonl and validation.jsonl, each once."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tracker_files import trackio_rows, wandb_records, wandb_rows

from alignkd.student_train.job import TrainJob
from alignkd.student_train.metrics.points import step_points, validation_points
from alignkd.student_train.metrics.trackers.of_run import send_scores
from alignkd.student_train.output import TIMINGS
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
SECRET = "0123456789abcdef0123456789abcdef01234567"
Points = dict[tuple[int, str], float]


def test_a_resumed_run_is_one_run_with_every_figure_once(
    many_store: Path,
    make_job: MakeJob,
    fresh_trackers: Path,
    start_child: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the fourth of six steps, after the checkpoint of the second, then resumed: step 3 is done twice."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    job = make_job(
        many_store,
        steps=6,
        checkpoint_every=2,
        validation={"store": str(many_store), "every": 2, "max_samples": 2, "export": "last"},
        report_to=["tensorboard", "wandb", "trackio"],
    )
    output = job.train.output
    child = start_child(job, blow=("trainer", "_optimiser_step", 4, int(signal.SIGKILL)))
    assert child.wait(120) == -signal.SIGKILL
    killed = _lines(output / "metrics.jsonl")
    assert [line["step"] for line in killed] == [1, 2, 3]
    train(job)

    expected = _expected(output)
    assert _tensorboard(output) == pytest.approx(expected, rel=1e-6)  # stored as float32
    for found in (_wandb(output), _trackio(fresh_trackers)):
        assert found.keys() == expected.keys()
        first = {(3, name): value for name, value in step_points(killed[-1]).items()}
        for point, value in found.items():
            # times of the step that was done twice are those of either process
            of_first = point in first and point[1].removeprefix("run/") in TIMINGS and value == first[point]
            assert of_first or value == expected[point], point
    send_scores(job.train, {"gqa": 60.0}, uses_lora=False)
    assert {"step": 6, "eval/gqa": 60}.items() <= wandb_rows(output)[-1].items()
    assert trackio_rows(fresh_trackers, "alignkd")[-1][1:] == (6, {"eval/gqa": 60.0})
    assert len({name for name, *_ in trackio_rows(fresh_trackers, "alignkd")}) == 1
    numbers = [row["_step"] for row in wandb_rows(output)]
    assert numbers == sorted(set(numbers))
    runs = [record.run for record in wandb_records(output) if record.WhichOneof("record_type") == "run"]
    assert {run.run_id for run in runs} == {json.loads((output / "trackers" / "wandb.json").read_text())["identifier"]}
    assert {run.display_name for run in runs} == {"out"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def _tensorboard(output: Path) -> Points:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {(event.step, tag): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _expected(output: Path) -> Points:
    steps = {
        (line["step"], name): value
        for line in _lines(output / "metrics.jsonl")
        for name, value in step_points(line).items()
    }
    validations = {
        (line["step"], name): value
        for line in _lines(output / "validation.jsonl")
        for name, value in validation_points(line).items()
    }
    assert len(validations) >= 4
    return steps | validations


def _wandb(output: Path) -> Points:
    found: Points = {}
    for row in wandb_rows(output):
        for name, value in row.items():
            if name != "step" and not name.startswith("_"):
                assert (row["step"], name) not in found, "twice"
                found[row["step"], name] = value
    return found


def _trackio(folder: Path) -> Points:
    found: Points = {}
    for _, step, metrics in trackio_rows(folder, "alignkd") if (folder / "alignkd.db").exists() else ():
        for name, value in metrics.items():
            assert (step, name) not in found, "twice"
            found[step, name] = value
    return found
