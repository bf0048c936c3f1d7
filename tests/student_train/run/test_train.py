"""`train(job)` in one process: learns, resumes, refuses, exports."""

import json
import logging
import multiprocessing
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkd.storage.files.checksum import file_crc32c
from alignkd.storage.files.exclusive import remove
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.student_train import trainer
from alignkd.student_train.checkpoints import parts as checkpoint_parts
from alignkd.student_train.checkpoints import times as checkpoint_times
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.objective.tally import StepTally
from alignkd.student_train.output import student_folder
from alignkd.student_train.trainer import train
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

MakeJob = Callable[..., TrainJob]
ReadMetrics = Callable[[Path], list[dict[str, Any]]]


def test_a_run_learns_reports_and_exports(many_store: Path, make_job: MakeJob, golden_folder: Path) -> None:
    job = make_job(many_store, steps=12, micro_batch=5, adapter_init="mean_of_heads")
    result = train(job)
    lines = [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["samples_seen"] for line in lines] == [5 * step for step in range(1, 13)]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    weights = job.train.losses.weights
    for line in lines:
        assert line["loss"] == pytest.approx(sum(weight * line[term] for term, weight in weights.items()), rel=1e-6)
        assert line["grad_norm"] > 0
        assert line["seconds"] > 0
        assert 0 <= line["wait_share"] <= 1
    assert result.metrics == lines[-1]
    assert (result.step, result.samples_seen, result.skipped_steps) == (12, 60, 0)

    assert result.student is not None
    exported = load_model(result.student, vision_config=golden_folder / "clip").state_dict()
    before = load_model(golden_folder / "student", vision_config=golden_folder / "clip").state_dict()
    for name, value in exported.items():
        assert torch.equal(value, before[name]) == ("vision_tower" in name), name
    assert result.adapters is not None
    assert load_file(result.adapters)["attn_adapter.weight"].shape == (4, 8, 1, 1)


def test_stopped_and_resumed_equals_unbroken(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at step 2 of 5, in another epoch than the end, with accumulation; bit for bit."""
    settings: dict[str, Any] = {"steps": 5, "micro_batch": 2, "global_batch": 4}
    train(make_job(many_store, output=tmp_path / "unbroken", **settings))
    job = make_job(many_store, output=tmp_path / "broken", **settings)

    interrupt_at(2, monkeypatch)
    stopped = train(job)
    assert (stopped.interrupted_by, stopped.step, stopped.student) == (signal.SIGINT, 2, None)
    resumed = train(job)
    assert (resumed.interrupted_by, resumed.step) == (None, 5)
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()

    again = train(job)
    assert again.already_finished
    assert again.metrics == resumed.metrics
    with pytest.raises(TrainError, match=r"learning_rate was 0\.001, is 0\.002; restore them, or choose another"):
        train(make_job(many_store, output=tmp_path / "broken", **settings, learning_rate=2e-3))


def test_bfloat16_resumes_exactly(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Master weights are float32: rounding them to bfloat16 at a checkpoint would show in the next losses."""
    train(make_job(many_store, output=tmp_path / "unbroken", steps=4, dtype="bfloat16"))
    job = make_job(many_store, output=tmp_path / "broken", steps=4, dtype="bfloat16")
    interrupt_at(2, monkeypatch)
    train(job)
    train(job)
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")


def test_a_broken_checkpoint_falls_back_to_the_one_before(
    many_store: Path,
    make_job: MakeJob,
    read_metrics: ReadMetrics,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = make_job(many_store, steps=5, checkpoint_every=1, keep_checkpoints=2)
    interrupt_at(3, monkeypatch)
    train(job)
    checkpoints = job.train.output / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-00000002", "step-00000003"]
    flip_a_bit(checkpoints / "step-00000003" / "exp_avg-000.safetensors")
    with caplog.at_level(logging.WARNING):
        train(job)
    assert "step-00000003 is damaged (exp_avg-000.safetensors has crc32c" in caplog.text
    unbroken = make_job(many_store, output=tmp_path / "unbroken", steps=5)
    train(unbroken)
    assert read_metrics(job.train.output) == read_metrics(unbroken.train.output)

    for path in checkpoints.iterdir():
        (path / "weights-000.safetensors").unlink()
    (job.train.output / "finished.json").unlink()
    with pytest.raises(TrainError, match="none of 2 checkpoints is sound"):
        train(job)


def test_a_checkpoint_in_parts_and_one_of_version_0_1_are_the_same_run(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors go into files of bounded size, so that only so much is gathered at a time; 0.1 had one file per kind."""
    train(make_job(many_store, output=tmp_path / "unbroken", steps=3))
    monkeypatch.setattr(checkpoint_parts, "PART_BYTES", 150_000)
    for name in ("parts", "one-file"):
        interrupt_at(1, monkeypatch)
        train(make_job(many_store, output=tmp_path / name, steps=3))
        (folder,) = (tmp_path / name / "checkpoints").iterdir()
        weights = sorted(folder.glob("weights-*.safetensors"))
        held = [tensor.nbytes for path in weights for tensor in load_file(path).values()]
        assert len(weights) > 3
        assert max(path.stat().st_size for path in weights) < max(150_000, *held) + 10_000
        if name == "one-file":
            in_one_file_per_kind(folder)
            assert len(list(folder.iterdir())) == 4
        train(make_job(many_store, output=tmp_path / name, steps=3))
        assert read_metrics(tmp_path / name) == read_metrics(tmp_path / "unbroken")


def test_another_store_is_refused_at_resume(
    many_store: Path, dump: Any, many_samples: Any, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(1, monkeypatch)
    train(make_job(many_store))
    other = dump(tmp_path / "other", many_samples[:8])
    with pytest.raises(TrainError, match=r"manifest_hash was \w+, is \w+"):
        train(make_job(other))


def test_adapters_of_an_earlier_stage_are_carried_over(
    many_store: Path, make_job: MakeJob, golden_folder: Path, tmp_path: Path
) -> None:
    """A run that does not train them hands them on as they came."""
    carried = golden_folder / "adapters.safetensors"
    result = train(make_job(many_store, steps=1, adapters=carried, preset="supervised"))
    assert result.adapters is not None
    for name, value in load_file(carried).items():
        assert torch.equal(load_file(result.adapters)[name], value)
    distilled = train(make_job(many_store, steps=1, adapters=carried, output=tmp_path / "distilled"))
    assert distilled.adapters is not None
    moved = load_file(distilled.adapters)["attn_adapter.bias"] - load_file(carried)["attn_adapter.bias"]
    assert 0 < moved.abs().max() < 2e-3


def test_a_run_given_in_epochs_sees_every_sample(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    """And it is the run of as many steps: one goes on where the other stopped."""
    job = make_job(many_store, steps=None, epochs=1, micro_batch=2, global_batch=4)
    result = train(job)
    assert (result.step, result.samples_seen) == (3, 12)  # ten samples, rounded up
    as_steps = make_job(many_store, steps=3, micro_batch=2, global_batch=4)
    assert train(as_steps).already_finished
    with pytest.raises(TrainError, match="steps was 3, is 5"):
        train(make_job(many_store, steps=None, epochs=2, micro_batch=2, global_batch=4))


def test_text_only_store(dump: Any, v1_samples: Any, make_job: MakeJob, tmp_path: Path) -> None:
    text_only = [sample for sample in v1_samples if "image" not in sample]
    result = train(make_job(dump(tmp_path / "store", text_only), steps=2, micro_batch=1))
    assert result.metrics["attention"] is None
    assert result.metrics["vision_all"] is None
    assert result.metrics["supervised"] is not None


def test_a_student_that_diverges_is_stopped(
    many_store: Path, make_job: MakeJob, golden_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "student"
    shutil.copytree(golden_folder / "student", broken)
    weights = load_file(broken / "model.safetensors")
    weights["lm_head.weight"].fill_(1e38)  # finite, which is all that can be asked of a file
    save_file(weights, broken / "model.safetensors")
    job = make_job(many_store, steps=20, micro_batch=1, skip_limit=4)
    with pytest.raises(TrainError, match=r"4 steps in a row were skipped, at step 4 the loss is (nan|inf)"):
        train(TrainJob(**vars(job) | {"student": broken}))
    lines = [json.loads(line) for line in (job.train.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines] == [True] * 4
    assert lines[0]["loss"] is None


def test_a_step_that_is_not_finite_is_skipped_counted_and_survived(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and AdamW's moments stay what they were, to the bit."""
    original, calls = StepTally.add, [0]

    def poisoned(self: StepTally, terms: Any) -> torch.Tensor:
        calls[0] += 1
        return original(self, terms) * (float("nan") if calls[0] == 3 else 1.0)

    monkeypatch.setattr(StepTally, "add", poisoned)
    job = make_job(many_store, steps=5, micro_batch=5, skip_limit=2, checkpoint_every=1, keep_checkpoints=5)
    result = train(job)
    lines = read_metrics(job.train.output)
    assert [line["skipped"] for line in lines] == [False, False, True, False, False]
    assert (result.step, result.skipped_steps, result.samples_seen) == (5, 1, 25)
    files = {
        step: [path.read_bytes() for path in sorted((job.train.output / "checkpoints" / step).glob("*.safetensors"))]
        for step in ("step-00000002", "step-00000003", "step-00000004")
    }
    assert len(files["step-00000002"]) == 3
    assert files["step-00000002"] == files["step-00000003"] != files["step-00000004"]


def test_a_run_in_which_no_step_was_applied_exports_nothing(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StepTally.add
    monkeypatch.setattr(StepTally, "add", lambda self, terms: original(self, terms) * float("nan"))
    job = make_job(many_store, steps=2)
    for _ in range(2):  # the second time from the checkpoint of the last step
        with pytest.raises(TrainError, match=r"none of 2 steps changed the student.*lower learning_rate 0\.001"):
            train(job)
    assert not student_folder(job.train.output).exists() and not (job.train.output / "finished.json").exists()


def test_weights_that_the_last_step_broke_are_not_exported(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss is computed from them any more, so no skipped step tells."""
    original = trainer.save_checkpoint

    def broken(folder: Path, engine: Any, *others: Any, **settings: Any) -> None:
        original(folder, engine, *others, **settings)
        engine.student.model.lm_head.weight.data[0, 0] = float("inf")

    monkeypatch.setattr(trainer, "save_checkpoint", broken)
    with pytest.raises(TrainError, match=r"after step 1 model\.lm_head\.weight is not finite; nothing is exported"):
        train(make_job(many_store, steps=1))


def take_away(output: Path, gone: str) -> None:
    """Remove a file or folder; `NAME cut` leaves its first bytes, `NAME away` a link that leads nowhere."""
    name, _, how = gone.partition(" ")
    content = (output / name).read_bytes()[:100] if how == "cut" else b""
    remove(output / name)
    if how == "cut":
        (output / name).write_bytes(content)
    if how == "away":
        (output / name).symlink_to(output / "nowhere")


@pytest.mark.parametrize(
    "gone",
    ["student", "student/tokenizer.model", "student/model.safetensors cut", "adapters.safetensors", "student away"],
)
def test_what_is_gone_of_a_finished_run_is_exported_again(
    gone: str, finished_run: TrainJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished_run.train.output, output)
    job = replace(finished_run, train=finished_run.train.model_copy(update={"output": output}))
    before = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    take_away(output, gone)
    result = train(job)
    assert "its student or adapters are missing; exporting them again" in caplog.text
    assert (result.already_finished, result.step, result.student) == (True, 2, student_folder(output))
    after = {path.relative_to(output): path.read_bytes() for path in output.rglob("*") if path.is_file()}
    volatile = {path for path in before.keys() | after.keys() if path.parts[0] in ("run.lock", "tensorboard")}
    assert {path: after[path] for path in after.keys() - volatile} == {
        path: before[path] for path in before.keys() - volatile
    }


def test_without_the_last_checkpoint_a_finished_run_is_not_trained_again(
    finished_run: TrainJob, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    shutil.copytree(finished_run.train.output, output)
    shutil.rmtree(output / "student")
    remove(output / "checkpoints" / "step-00000002")
    job = replace(finished_run, train=finished_run.train.model_copy(update={"output": output}))
    with pytest.raises(TrainError, match=r"checkpoint of step 2 to export them from \(the newest is of step 1\)"):
        train(job)
    shutil.rmtree(output / "checkpoints")
    with pytest.raises(TrainError, match=r"checkpoint of step 2 to export them from \(there is none\); restore them"):
        train(job)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_every_signal_that_ends_a_job_gives_a_checkpoint(
    number: signal.Signals, many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_at(1, monkeypatch, number)
    job = make_job(many_store, steps=3, micro_batch=1)
    assert train(job).interrupted_by == number
    assert [path.name for path in (job.train.output / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_checkpoint_is_written_when_the_time_is_up(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes 16 minutes per step."""
    original, minutes = trainer._optimiser_step, [-16]

    def step(*args: Any) -> Any:
        minutes[0] += 16
        return original(*args)

    monkeypatch.setattr(trainer, "_optimiser_step", step)
    monkeypatch.setattr(checkpoint_times, "monotonic", lambda: 60.0 * max(0, minutes[0]))
    job = make_job(many_store, steps=4, micro_batch=1)
    train(job)
    steps = sorted(path.name for path in (job.train.output / "checkpoints").iterdir())
    assert steps == ["step-00000003", "step-00000004"]


def test_a_damaged_metrics_file_is_one_line(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store, steps=1)
    job.train.output.mkdir()
    (job.train.output / "run.lock").touch()
    (job.train.output / "metrics.jsonl").write_text('{"step": 1}{"step": 1}\n')
    with pytest.raises(TrainError, match=r"metrics\.jsonl: damaged \(JSONDecodeError.*move it away") as error:
        train(job)
    assert "\n" not in str(error.value)


def test_data_workers_see_the_same_batches(
    many_store: Path, make_job: MakeJob, read_metrics: ReadMetrics, tmp_path: Path
) -> None:
    for workers in (0, 2):
        train(make_job(many_store, output=tmp_path / str(workers), steps=3, data_workers=workers))
    assert read_metrics(tmp_path / "0") == read_metrics(tmp_path / "2")


def test_an_error_in_a_worker_is_one_line(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="image cannot be read") as error:
        train(make_job(many_store, images=tmp_path, data_workers=1, micro_batch=8))
    assert "\n" not in str(error.value)


def test_workers_start_before_the_model_and_end_with_a_refused_start(
    many_store: Path, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker keeps the pages that its parent had when it was forked: weights and moments must come later."""
    others, seen = set(multiprocessing.active_children()), []
    original = trainer.build_student

    def looking(*arguments: Any) -> Any:
        seen.append(len(set(multiprocessing.active_children()) - others))
        return original(*arguments)

    def refusing(*arguments: Any, **options: Any) -> Any:
        raise TrainError("no such device")

    monkeypatch.setattr(trainer, "build_student", looking)
    monkeypatch.setattr(trainer, "build_engine", refusing)
    with pytest.raises(TrainError, match="no such device") as refused:
        train(make_job(many_store, data_workers=2))
    assert seen == [2]
    assert refused.tb is not None  # it still leads to the batches
    assert set(multiprocessing.active_children()) <= others


def test_a_folder_that_is_not_of_this_run_is_not_replaced(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store)
    (job.train.output / "student").mkdir(parents=True)
    with pytest.raises(TrainError, match=r"contains student, but no training run \(run\.lock\); choose a new"):
        train(job)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(many_store: Path, make_job: MakeJob) -> None:
    job = make_job(many_store, steps=2, checkpoint_every=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # no file may grow further: as a full disk
    try:
        with pytest.raises(
            TrainError, match=r"step-00000001: cannot be written .File too large .*allows no larger file"
        ) as error:
            train(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert not list((job.train.output / "checkpoints").iterdir())
    assert train(job).step == 2


@pytest.fixture(scope="module")
def finished_run(many_store: Path, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:
    """A run of two steps with a checkpoint of each, to be copied."""
    config = TrainConfig(output=tmp_path_factory.mktemp("finished"), steps=2, micro_batch=1, checkpoint_every=1)
    job = TrainJob(
        student=golden_folder / "student",
        vision_config=golden_folder / "clip",
        images=golden_folder.parent / "images",
        store=many_store,
        train=config,
    )
    train(job)
    return job


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    """Send this process a signal while it does optimiser step `step`, once."""
    original, calls = trainer._optimiser_step, [0]

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(trainer, "_optimiser_step", interrupted)


def in_one_file_per_kind(folder: Path) -> None:
    """A checkpoint as version 0.1 wrote it."""
    document = unseal(folder / "state.json")
    for kind in ("weights", "exp_avg", "exp_avg_sq"):
        parts = sorted(folder.glob(f"{kind}-*.safetensors"))
        save_file(
            {name: tensor for part in parts for name, tensor in load_file(part).items()}, folder / f"{kind}.safetensors"
        )
        for part in parts:
            part.unlink()
    files = {path.name: [path.stat().st_size, file_crc32c(path)] for path in folder.glob("*.safetensors")}
    (folder / "state.json").write_bytes(seal({**document, "files": files}))


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("length", "told"),
    [
        ({"steps": 2}, "2 steps of 4 samples: 8 samples, 0.8 passes over 10"),
        ({"epochs": 0.8}, "2 steps of 4 samples: 8 samples, 0.8 passes over 10 (train.epochs 0.8)"),
        (
            {"epochs": 0.5},
            "2 steps of 4 samples: 8 samples, 0.8 passes over 10 "
            "(train.epochs 0.5, rounded up to whole steps by 3 more samples; no sample is dropped)",
        ),
    ],
)
def test_the_length_of_a_run_is_logged(
    length: dict[str, Any], told: str, many_store: Path, make_job: MakeJob, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        result = train(make_job(many_store, **{"steps": None, "micro_batch": 4, "preset": "supervised", **length}))
    assert told in caplog.messages
    assert (result.step, result.samples_seen) == (2, 8)
