"""Runs whose micro-batches are sorted by length and cut by tokens are the run of whole global batches."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes_of_two import ended, run_two
from safetensors.torch import load_file

from alignkd.storage import StoreReader
from alignkd.student_train.data.samples.dataset import CachedDataset
from alignkd.student_train.distributed.ranks import start_ranks
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.plan import plan_run
from alignkd.student_train.run.start import announce
from alignkd.student_train.stores import TrainStore
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


def budget(tokens: int, **settings: Any) -> dict[str, Any]:
    return {"micro_batch": None, "token_budget": tokens, **settings}


def numbers_of(job: TrainJob) -> list[int]:
    """Micro-batches of each step."""
    divisions = plan_run(job, start_ranks()).divisions
    return [len(divisions.of_step(step)) for step in range(job.train.num_steps)]


def paddings(job: TrainJob) -> list[float]:
    lines = (job.train.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["padding"] for line in lines]


@pytest.fixture(scope="module")
def halves(dump: Any, many_samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainStore, ...]:
    """Seven samples of about 270 tokens and three of about 120 in two stores; both kinds in the first one."""
    folder = tmp_path_factory.mktemp("halves")
    return tuple(
        TrainStore(path=dump(folder / name, samples))
        for name, samples in (("six", many_samples[:6]), ("four", many_samples[6:]))
    )


def test_every_division_of_a_global_batch_is_the_same_step(
    halves: tuple[TrainStore, ...], make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, monkeypatch: Any
) -> None:
    """In float32 up to rounding, also the figures of each source."""
    settings: dict[str, Any] = {"steps": 2, "global_batch": 8}

    def run(name: str, **size: Any) -> TrainJob:
        job = make_job(halves, output=tmp_path / name, **settings | size)
        train(job)
        return job

    whole = run("whole", micro_batch=8)
    runs = [run("sorted", micro_batch=2), run("budget", **budget(600)), run("small", **budget(250))]
    with monkeypatch.context() as unsorted:
        unsorted.setattr(CachedDataset, "lengths", property(lambda self: np.full(len(self), 1)))
        runs.append(run("unsorted", micro_batch=2))
    reference = read_metrics(whole.train.output)
    expected = load_file(tmp_path / "whole" / "student" / "model.safetensors")
    for job in runs:
        for line, other in zip(read_metrics(job.train.output), reference, strict=True):
            assert line.pop("by_source").keys() == other["by_source"].keys()
            assert line == pytest.approx({k: v for k, v in other.items() if k != "by_source"}, rel=2e-5), job
        for line, other in zip(read_metrics(job.train.output), reference, strict=True):
            for source, figures in line["by_source"].items():
                assert figures == pytest.approx(other["by_source"][source], rel=2e-5), (job, source)
        weights = load_file(job.train.output / "student" / "model.safetensors")
        # AdamW turns the sign of a gradient near 0 into a whole step of the learning rate.
        assert all((weights[name] - value).abs().max() < 2.1e-3 for name, value in expected.items())
    counts = [numbers_of(job) for job in runs[:3]]
    assert counts[0] == [4, 4] and counts[1] != counts[2] and min(counts[2]) > 4  # alone, or two of text
    assert all(1 <= near < far for near, far in zip(paddings(runs[0]), paddings(whole), strict=True))


def test_the_padding_of_a_step_is_that_of_its_tensors(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store, steps=2, **budget(600, global_batch=10))
    train(job)
    plan = plan_run(job, start_ranks())
    batches = plan.micro_batches(first_step=0)
    real = int(StoreReader(many_store).sequence_lengths.sum())  # ten samples, each once per step
    for step, padding in enumerate(paddings(job)):
        positions = sum(next(batches).sequences.input_ids_BL.numel() for _ in range(len(plan.divisions.of_step(step))))
        assert padding == positions / real
    assert next(batches, None) is None


def test_a_token_budget_on_one_and_two_ranks_killed_and_resumed(
    many_store: Path,
    make_job: MakeJob,
    start_child: Any,
    one_thread: None,
    read_metrics: ReadMetrics,
    tmp_path: Path,
) -> None:
    """Data workers and a resume change no bit, two ranks nothing but rounding."""
    settings: dict[str, Any] = {"steps": 4, "checkpoint_every": 2, **budget(250, global_batch=6)}
    unbroken = make_job(many_store, output=tmp_path / "unbroken", **settings)
    train(unbroken)
    assert len(set(numbers_of(unbroken))) > 1
    job = make_job(many_store, output=tmp_path / "killed", data_workers=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 4, signal.SIGKILL)), -signal.SIGKILL)
    ended(start_child(job))
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)
    assert paddings(job) == paddings(unbroken)
    weights = [(one.train.output / "student" / "model.safetensors").read_bytes() for one in (job, unbroken)]
    assert weights[0] == weights[1]

    two = make_job(many_store, output=tmp_path / "two", **settings)
    run_two(start_child, two)
    for line, reference in zip(read_metrics(two.train.output), read_metrics(unbroken.train.output), strict=True):
        assert line == pytest.approx(reference, rel=5e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_of_one_and_of_several_micro_batches(
    dtype: str, many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """The engine for one device and DeepSpeed, which offloads, add up what a step has."""
    settings = {"steps": 4, "dtype": dtype, **budget(1200, global_batch=4)}
    on_device, offloaded = (
        make_job(many_store, output=tmp_path / optimizer, optimizer=optimizer, **settings)
        for optimizer in ("adamw", "adamw_offload")
    )
    train(on_device)
    train(offloaded)
    assert set(numbers_of(on_device)) == {1, 2}
    whole = make_job(many_store, output=tmp_path / "whole", **settings | {"micro_batch": 4, "token_budget": None})
    train(whole)
    close = {"float32": 2e-5, "bfloat16": 0.03}[dtype]
    for device, host, reference in zip(
        *(read_metrics(job.train.output) for job in (on_device, offloaded, whole)), strict=True
    ):
        assert device == pytest.approx(host, rel=1e-6)
        assert device == pytest.approx(reference, rel=close)


def test_samples_that_are_longer_than_the_budget_are_told(
    many_store: Path, make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lengths = np.sort(StoreReader(many_store).sequence_lengths)
    shorter, longest = int((lengths < lengths[-1]).sum()), int(lengths[-1])
    for tokens, longer in ((1, len(lengths)), (longest - 1, len(lengths) - shorter), (longest, 0)):
        caplog.clear()
        announce(plan_run(make_job(many_store, steps=1, global_batch=4, **budget(tokens)), start_ranks()))
        line = f"token_budget {tokens}: {longer} of {len(lengths)} samples are longer, up to {longest} tokens"
        assert (line in caplog.text) if longer else ("token_budget" not in caplog.text)


def test_micro_batch_and_budget_may_change_when_a_run_is_resumed(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, start_child: Any
) -> None:
    settings = {"steps": 4, "global_batch": 4, "checkpoint_every": 1}
    whole = make_job(many_store, output=tmp_path / "whole", micro_batch=4, **settings)
    train(whole)
    job = make_job(many_store, micro_batch=2, **settings)
    ended(start_child(job, ("trainer", "_optimiser_step", 3, signal.SIGKILL)), -signal.SIGKILL)
    train(make_job(many_store, **settings | budget(300)))
    for line, reference in zip(read_metrics(job.train.output), read_metrics(whole.train.output), strict=True):
        assert line == pytest.approx(reference, rel=2e-5)


def test_validation_by_tokens_is_validation_by_samples(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """Of a store by length; of data whose lengths are not known by the longest that they may have."""
    data = tmp_path / "data.json"
    entries = [{"id": str(n), "conversations": [{"from": "human", "value": "What?"},
                {"from": "gpt", "value": "word " * (1 + 9 * n)}]} for n in range(7)]  # fmt: skip
    data.write_text(json.dumps(entries))
    for section in ({"store": str(many_store)}, {"data": {"conversations": str(data), "max_tokens": 300}}):
        lines = []
        for number, size in enumerate(({"micro_batch": 5, "global_batch": 5}, budget(600, global_batch=5))):
            output = tmp_path / f"{number} {len(section)} {next(iter(section))}"
            train(make_job(many_store, output=output, steps=1, validation=section, **size))
            lines.append([json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()])
        for found, expected in zip(*lines, strict=True):
            same = {name: value for name, value in expected.items() if name != "seconds"}
            assert {**found, "seconds": None} == {"seconds": None, **{
                name: value if value is None else pytest.approx(value, rel=2e-5) for name, value in same.items()
            }}  # fmt: skip
