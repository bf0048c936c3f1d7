"""`train.domain_weights`: what is measured, weights in figures, resume, ranks, data workers, and what is refused."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes_of_two import ended, run_two

from alignkd.pipeline.report.load import load_runs
from alignkd.pipeline.report.table import plain_table
from alignkd.storage.tools.select.scan import mean_nlls
from alignkd.student_train.checkpoints.checkpoint import DOMAIN_WEIGHTS
from alignkd.student_train.data.domains.ddk import first_weights, next_weights, perplexity_ratios
from alignkd.student_train.data.loader import load_batch
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.settings import LossConfig
from alignkd.student_train.output import read_finished
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.run.student import build_student
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]
SETTINGS: dict[str, Any] = {"steps": 6, "global_batch": 4, "micro_batch": 2, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def halves(dump: Any, many_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainStore, ...]:
    """Six and four samples of the ten."""
    folder = tmp_path_factory.mktemp("halves")
    paths = dump(folder / "six", many_samples[:6]), dump(folder / "four", many_samples[6:])
    return tuple(TrainStore(path=path) for path in paths)


def ddk(interval: int = 2, **settings: Any) -> dict[str, Any]:
    return {"domain_weights": {"method": "ddk", "interval": interval, **settings}}


def history(output: Path) -> dict[str, Any]:
    finished = read_finished(output)
    assert finished is not None
    found: dict[str, Any] = finished[DOMAIN_WEIGHTS]
    return found


def test_weights_follow_what_is_measured(
    halves: tuple[TrainStore, ...], make_job: MakeJob, read_metrics: ReadMetrics
) -> None:
    """The first measurement is that of the student itself; figures, mark and report show the weights."""
    job = make_job(halves, **SETTINGS | ddk(alpha=0.6))
    plan = plan_run(job, start_ranks())
    measured = [portion.measured for portion in plan.mixture.portions]
    assert [len(own) for own in measured] == [1, 1]
    student = build_student(job, plan.student, plan.reader).eval()
    student.losses = LossConfig(supervised=1.0, logit=0, attention=0, vision_top=0, vision_all=0)
    losses = [
        float(student(load_batch(plan.samples, own, targets=(), stem=None))["supervised"].mean.detach())
        for own in measured
    ]
    teacher = [float(mean_nlls(plan.samples.readers[0], measured[0])[0])]
    teacher.append(float(mean_nlls(plan.samples.readers[1], measured[1] - 6)[0]))

    result = train(job)
    found = history(job.train.output)
    assert found["domains"] == ["six", "four"] and len(found["student"]) == 3
    assert found["student"][0] == pytest.approx(losses, rel=1e-5) and found["teacher"] == pytest.approx(teacher)
    expected = first_weights(perplexity_ratios(found["student"][0], teacher))
    for number, weights in enumerate(found["weights"]):
        if number:
            expected = next_weights(expected, perplexity_ratios(found["student"][number], teacher), 0.6)
        assert weights == pytest.approx(expected.tolist(), rel=1e-12)
        for line in read_metrics(job.train.output)[2 * number : 2 * number + 2]:
            assert [line["by_source"][name]["weight"] for name in ("six", "four")] == weights
    counts = {
        name: sum(line["by_source"][name]["samples"] for line in read_metrics(job.train.output))
        for name in found["domains"]
    }
    assert result.samples_by_source == counts
    again = train(job)
    assert again.already_finished and again.samples_by_source == counts
    assert "source four: mean weight" in plain_table(load_runs([job.train.output]))


def test_measured_samples_are_never_trained_on(halves: tuple[TrainStore, ...], make_job: MakeJob) -> None:
    plan = plan_run(make_job(halves, **SETTINGS | ddk()), start_ranks())
    assert plan.mixture.per_pass == 8 == plan.order.num_samples
    for portion in plan.mixture.portions:
        assert not set(portion.measured.tolist()) & set(plan.mixture.trained.tolist())
    plan.order.restore([(0.5, 0.5)] * 20)  # type: ignore[attr-defined]
    seen = {int(one) for step in range(40) for one in plan.order.global_batch_indices(step)}
    assert seen == set(plan.mixture.trained.tolist())


def test_killed_and_resumed_on_one_and_two_ranks(
    halves: tuple[TrainStore, ...],
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """kill -9 before and after a measurement is bit for bit the unbroken run; two ranks are one rank to rounding."""
    unbroken = make_job(halves, output=tmp_path / "unbroken", **SETTINGS | ddk())
    train(unbroken)
    job = make_job(halves, output=tmp_path / "killed", **SETTINGS | ddk())
    ended(start_child(job, ("domain_weights", "evaluate", 3, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job, ("trainer", "_optimiser_step", 3, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    assert history(job.train.output) == history(unbroken.train.output)
    weights = [(one.train.output / "student" / "model.safetensors").read_bytes() for one in (job, unbroken)]
    assert weights[0] == weights[1]

    two = make_job(halves, output=tmp_path / "two", **SETTINGS | ddk() | {"micro_batch": 1})
    run_two(start_child, two)
    found, expected = history(two.train.output), history(unbroken.train.output)
    assert np.allclose(found["weights"], expected["weights"], rtol=1e-4)
    for line, reference in zip(read_metrics(two.train.output), read_metrics(unbroken.train.output), strict=True):
        assert line["loss"] == pytest.approx(reference["loss"], rel=1e-4)
        assert [one["samples"] for one in line["by_source"].values()] == [
            one["samples"] for one in reference["by_source"].values()
        ]


def test_stopped_in_a_measurement(
    halves: tuple[TrainStore, ...],
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """A stop request ends the measurement with a checkpoint of the step before it; the resume repeats it."""
    settings = SETTINGS | ddk() | {"checkpoint_every": None, "steps": 4}
    unbroken = make_job(halves, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    job = make_job(halves, output=tmp_path / "stopped", **settings)
    ended(start_child(job, ("domain_weights", "evaluate", 4, signal.SIGTERM)), 128 + signal.SIGTERM)
    state = json.loads((job.train.output / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert len(state[DOMAIN_WEIGHTS]["weights"]) == 1
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    assert history(job.train.output) == history(unbroken.train.output)


def test_data_workers_wait_for_the_weights(
    halves: tuple[TrainStore, ...], make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """Workers prepare ahead; the batches of an interval that is not measured yet come when it is."""
    for workers in (0, 2):
        train(make_job(halves, output=tmp_path / f"{workers}", **SETTINGS | ddk() | {"data_workers": workers}))
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "2")


def test_alpha_0_makes_all_domains_alike(halves: tuple[TrainStore, ...], make_job: MakeJob) -> None:
    job = make_job(halves, **SETTINGS | ddk(alpha=0.0))
    train(job)
    assert history(job.train.output)["weights"][1:] == [[0.5, 0.5]] * 2


def test_an_extension_goes_on_with_the_weights(
    halves: tuple[TrainStore, ...], make_job: MakeJob, tmp_path: Path
) -> None:
    train(make_job(halves, output=tmp_path / "first", **SETTINGS | ddk()))
    extend = {"run": str(tmp_path / "first"), "schedule": "constant", "learning_rate": 1e-3}
    settings = SETTINGS | ddk() | {"steps": 8, "extend": extend}
    train(make_job(halves, output=tmp_path / "second", **settings))
    before, after = history(tmp_path / "first"), history(tmp_path / "second")
    assert after["weights"][:3] == before["weights"] and len(after["weights"]) == 4
    with pytest.raises(TrainError, match=r"domain_weights was \{.*\}, is None"):
        train(make_job(halves, output=tmp_path / "third", **settings | {"domain_weights": None}))


def test_validation_and_lists_are_left_out_of_the_domains(halves: tuple[TrainStore, ...], make_job: MakeJob) -> None:
    job = make_job(halves, **SETTINGS | ddk() | {"validation": {"share": 0.3}})
    plan = plan_run(job, start_ranks())
    used = np.concatenate([plan.mixture.trained, *(portion.measured for portion in plan.mixture.portions)])
    assert sorted([*used, *plan.held_out]) == list(range(10))


def test_what_is_refused(
    halves: tuple[TrainStore, ...], many_store: Path, dump: Any, many_samples: Any, make_job: MakeJob, tmp_path: Path
) -> None:
    def refused(stores: Any, match: str, **changed: Any) -> None:
        with pytest.raises(TrainError, match=match):
            plan_run(replace(make_job(stores, **SETTINGS | ddk()), **changed), start_ranks())

    refused(many_store, r"the run has one domain \(many\); train from several stores")
    weighted = (replace(halves[0], weight=2.0), halves[1])
    refused(weighted, "sets the weights of all domains, but store six has a weight or share")
    one = TrainStore(path=dump(tmp_path / "one", many_samples[:1]))
    refused((halves[1], one), "domain one has 1 samples, too few")
    huge = make_job(halves, **SETTINGS | ddk(interval=(1 << 31) - 1)).train
    refused(halves, "at most 16777216 are; lower interval to at most 4194304", train=huge)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        make_job(halves, **SETTINGS | ddk(alpha=1.5))


def test_the_checkpoint_is_json(halves: tuple[TrainStore, ...], make_job: MakeJob) -> None:
    job = make_job(halves, **SETTINGS | {"domain_weights": "ddk", "steps": 1})
    train(job)
    state = json.loads((job.train.output / "checkpoints" / "step-00000001" / "state.json").read_text())
    assert state[DOMAIN_WEIGHTS]["domains"] == ["six", "four"] and len(state[DOMAIN_WEIGHTS]["weights"]) == 1
