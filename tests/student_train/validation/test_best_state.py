"""The best state is kept and exported, runs end early, and a run that is killed is the unbroken one."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from processes_of_two import ended
from pydantic import ValidationError
from safetensors.torch import load_file

from alignkd.pipeline.runs.student.train import summary
from alignkd.student_train.config import TrainConfig
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob, TrainResult
from alignkd.student_train.output import read_finished
from alignkd.student_train.trainer import train
from alignkd.student_train.validation import validation as validations
from alignkd.student_train.validation.best import best_step
from alignkd.student_train.validation.state import ValidationState

MakeJob = Callable[..., TrainJob]
# A few samples are learnt by heart: the student is best after two steps, on the others it becomes worse and worse.
STEPS, BEST = 5, 2
OVERFITTING: dict[str, Any] = {"steps": STEPS, "learning_rate": 0.02, "warmup_ratio": 0.0, "preset": "supervised"}


def lines_of(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "validation.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def checkpoints(output: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir())


def weights_of_checkpoint(output: Path, step: int) -> dict[str, torch.Tensor]:
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {name: value for file in folder.glob("weights-*.safetensors") for name, value in load_file(file).items()}


def assert_is_export_of(output: Path, step: int) -> None:
    """Every trained weight of student and adapters has the bits of the checkpoint."""
    exported = load_file(output / "student" / "model.safetensors")
    adapters = load_file(output / "adapters.safetensors")
    found = weights_of_checkpoint(output, step)
    assert len(found) > 10
    for name, value in found.items():
        room, _, inner = name.partition(".")
        other = adapters[inner] if room == "adapters" else exported[inner]
        assert torch.equal(other, value), name


@pytest.fixture
def overfitting(many_store: Path, make_job: MakeJob) -> Callable[..., TrainJob]:
    """overfitting({train settings}, **validation settings): a run that is best long before its end."""

    def make(train: dict[str, Any] | None = None, **validation: Any) -> TrainJob:
        section = {"share": 0.7, "every": 1, **validation}
        return make_job(many_store, **OVERFITTING, **(train or {}), validation=section)

    return make


def test_the_best_state_is_kept_and_exported(overfitting: Any) -> None:
    job = overfitting({"checkpoint_every": 2})
    output = job.train.output
    result = train(job)
    lines = lines_of(output)
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    best = min(lines[1:], key=lambda line: line["loss"])
    assert best["step"] == BEST
    assert checkpoints(output) == [BEST, 4, 5]  # without validation, the two newest
    assert_is_export_of(output, BEST)
    assert best_step(output) == BEST
    found = result.validation
    assert found is not None and result.step == STEPS
    assert (found.exported_step, found.best, found.last) == (best["step"], best["loss"], lines[-1]["loss"])
    told = f"student of step {best['step']} (validation loss {best['loss']:.4g}; the last step has "
    assert f"{told}{lines[-1]['loss']:.4g}) in {output / 'student'}" in summary(result)

    shutil.rmtree(output / "student")
    again = train(job)  # exported again from the best checkpoint
    assert (again.already_finished, again.validation) == (True, found)
    assert_is_export_of(output, best["step"])
    assert told in summary(train(job))
    shutil.rmtree(output / "student")
    shutil.rmtree(output / "checkpoints" / f"step-{best['step']:08d}")
    with pytest.raises(TrainError, match=f"so is the checkpoint of the best step {best['step']} to export them from"):
        train(job)


def test_a_run_ends_early_when_nothing_improves(overfitting: Any, caplog: pytest.LogCaptureFixture) -> None:
    job = overfitting(patience=2, min_delta=0.01, figure="supervised", export="last")
    output = job.train.output
    with caplog.at_level("INFO"):
        result = train(job)
    lines, found = lines_of(output), result.validation
    values = [line["supervised"] for line in lines]
    assert found is not None and found.figure == "supervised"
    assert found.best_step == BEST and result.step == lines[-1]["step"] == BEST + 2
    assert min(values[1:]) == found.best == values[found.best_step]
    reason = (
        f"validation supervised has not improved by more than 0.01 in 2 validations; the best is {found.best:.4g} of "
    )
    assert found.stopped_early is not None and found.stopped_early.startswith(reason)
    assert f"step {result.step} of {STEPS}: ends early: {reason}" in caplog.text
    assert f"ended early at step {result.step}: {reason}" in summary(result)
    assert_is_export_of(output, result.step)
    finished = read_finished(output)
    assert finished is not None and finished["validation"]["stopped_early"] == found.stopped_early
    with caplog.at_level("INFO"):
        again = train(job)
    assert again.already_finished and again.validation == found and len(lines_of(output)) == len(lines)
    assert f"ended early before, at step {result.step}: {reason}" in caplog.text
    shutil.rmtree(output / "student")
    assert train(job).step == result.step  # exported again, not trained further
    assert_is_export_of(output, result.step)


def test_settings_that_decide_the_export_must_be_the_same(overfitting: Any, many_store: Path) -> None:
    job = overfitting(patience=1)
    train(job)
    for change, named in (
        ({"patience": 3}, r"validation\.patience was 1, is 3"),
        ({"figure": "supervised"}, r"validation\.figure was loss, is supervised"),
        ({"export": "last"}, r"validation\.export was best, is last"),
    ):
        with pytest.raises(TrainError, match=named):
            train(overfitting(**{"patience": 1, **change}))
    assert train(overfitting(patience=1, at_start=False, every=7, micro_batch=1)).already_finished


def test_other_samples_are_refused_at_resume(
    many_store: Path, dump: Any, many_samples: Any, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in_evaluation(1, monkeypatch)
    section = {"store": str(many_store), "at_start": False, "every": 1}
    train(make_job(many_store, steps=2, validation=section))
    other = dump(tmp_path / "other", many_samples[:4])
    with pytest.raises(TrainError, match=r"other validation samples: store \w+ of 10 samples, now store \w+ of 4"):
        train(make_job(many_store, steps=2, validation=section | {"store": str(other)}))


@pytest.fixture(scope="module")
def unbroken(many_store: Path, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the run that nothing interrupts."""
    output = tmp_path_factory.mktemp("unbroken")
    train(job_of(many_store, golden_folder, output))
    return output


def job_of(store: Path, golden: Path, output: Path) -> TrainJob:
    """That of `overfitting` with another output."""
    values = OVERFITTING | {"output": str(output), "micro_batch": 2, "validation": {"share": 0.7, "every": 1}}
    return TrainJob(
        student=golden / "student",
        vision_config=golden / "clip",
        images=golden.parent / "images",
        store=store,
        train=TrainConfig.model_validate(values),
    )


@pytest.fixture(scope="module")
def stopped_in(
    many_store: Path, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, Path], TrainResult]:
    """stopped_in(n, output): the same run, which got SIGINT in its n-th validation; made once, copied to `output`."""
    done: dict[int, tuple[Path, TrainResult]] = {}

    def make(call: int, output: Path) -> TrainResult:
        if call not in done:
            folder = tmp_path_factory.mktemp("stopped")
            with pytest.MonkeyPatch.context() as patch:
                stop_in_evaluation(call, patch)
                done[call] = folder, train(job_of(many_store, golden_folder, folder))
        shutil.copytree(done[call][0], output)
        return done[call][1]

    return make


@pytest.mark.parametrize("call", [1, STEPS + 1])
def test_ctrl_c_during_a_validation(
    call: int, stopped_in: Any, overfitting: Any, unbroken: Path, tmp_path: Path, read_metrics: Any
) -> None:
    """The first one, and that of the last step: it is repeated, and nothing is there twice."""
    output = tmp_path / "out"
    stopped = stopped_in(call, output)
    assert (stopped.interrupted_by, stopped.step, stopped.validation) == (signal.SIGINT, call - 1, None)
    assert len(lines_of(output)) == call - 1
    assert not (output / "student").exists()
    train(overfitting())
    assert lines_of(output) == lines_of(unbroken)
    assert read_metrics(output) == read_metrics(unbroken)
    assert best_step(output) == best_step(unbroken)
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (output / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_killed_run_is_the_unbroken_one(
    overfitting: Any, start_child: Any, one_thread: None, read_metrics: Any, tmp_path: Path
) -> None:
    """kill -9 between a validation and its checkpoint, where a repeated one is kept, in a commit, in the export."""
    unbroken = overfitting({"output": tmp_path / "unbroken"}, patience=2)
    train(unbroken)
    job = overfitting(patience=2)
    blows = [
        ("trainer", "save_checkpoint", 1, signal.SIGKILL),
        ("validation", "evaluate", 3, signal.SIGTERM),  # a checkpoint without its validation
        ("validation", "keep_validation", 1, signal.SIGKILL),
        ("checkpoint", "_commit", 1, signal.SIGKILL),
        ("export", "save_tensors", 1, signal.SIGKILL),
    ]
    for blow in blows:
        child = start_child(job, blow)
        _, errors = child.communicate(timeout=600)
        assert child.returncode == (-signal.SIGKILL if blow[3] == signal.SIGKILL else 128 + blow[3]), (blow, errors)
    ended(start_child(job))
    output = job.train.output
    assert lines_of(output) == lines_of(tmp_path / "unbroken")
    assert read_metrics(output) == read_metrics(tmp_path / "unbroken")
    found, expected = (read_finished(folder) for folder in (output, tmp_path / "unbroken"))
    assert found is not None and expected is not None and found["validation"] == expected["validation"]
    for name in ("student/model.safetensors", "adapters.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "unbroken" / name).read_bytes()


def test_a_best_checkpoint_that_is_gone_is_reported(
    overfitting: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop_in_evaluation(5, monkeypatch)
    job = overfitting()
    output = job.train.output
    train(job)
    best = best_step(output)
    assert best == BEST
    shutil.rmtree(output / "checkpoints" / f"step-{best:08d}")
    assert best_step(output) is None
    result = train(job)
    assert f"the checkpoint of the best step {best} is gone; the best is chosen anew" in caplog.text
    assert result.validation is not None and result.validation.exported_step == 4


def test_a_damaged_best_checkpoint_is_one_line(overfitting: Any, stopped_in: Any) -> None:
    job = overfitting()
    stopped_in(STEPS + 1, job.train.output)
    best = best_step(job.train.output)
    assert best is not None
    file = job.train.output / "checkpoints" / f"step-{best:08d}" / "weights-000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        TrainError, match=rf"step-{best:08d}: weights-000.* has crc32c .*; restore it, or remove"
    ) as told:
        train(job)
    assert "\n" not in str(told.value)
    assert not (job.train.output / "student").exists()


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({}, "give exactly one of share, store and data, found none"),
        ({"share": 0.1, "store": "s"}, "found share and store"),
        ({"share": 1.0}, "share"),
        ({"share": 0.1, "figure": "losss"}, "expected one of loss, supervised"),
        ({"share": 0.1, "images": "i"}, "images is the image folder of store"),
        ({"data": {"conversations": "c"}, "figure": "logit"}, "data has no target of a teacher; choose loss or one of"),
        ({"share": 0.1, "every": 0}, "every"),
    ],
)
def test_sections_that_cannot_be(section: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        TrainConfig.model_validate({"output": "out", "steps": 10, "validation": section})


def test_a_figure_must_be_computed() -> None:
    values = {"output": "out", "steps": 10, "preset": "supervised", "validation": {"share": 0.1, "figure": "logit"}}
    with pytest.raises(ValidationError, match=r"figure is 'logit', but losses\.logit is 0"):
        TrainConfig.model_validate(values)


@given(
    values=st.lists(st.floats(0, 4) | st.sampled_from([float("nan"), float("inf"), 1.0, 2.0]), min_size=1),
    min_delta=st.sampled_from([0.0, 0.5]),
)
def test_the_state_of_any_values(values: list[float], min_delta: float) -> None:
    """Best: the first lowest finite value after step 0. Patience: counted from the values themselves."""
    state = ValidationState(samples="some")
    for step, value in enumerate(values):
        state = state.after(step, value, min_delta=min_delta, is_candidate=step > 0)
        state = ValidationState.of(json.loads(json.dumps(state.document)))
    finite = [(value, step) for step, value in enumerate(values) if step > 0 and value < float("inf")]
    best = min(finite, default=(None, None))
    assert (state.best, state.best_step) == best
    reference, waited = float("inf"), 0
    for value in values[1:]:
        improved = value < float("inf") and value < reference - min_delta
        reference, waited = (value, 0) if improved else (reference, waited + 1)
    assert state.waited == waited


@given(st.integers(1, 200), st.none() | st.integers(1, 60), st.booleans())
def test_validations_are_as_many_as_counted(steps: int, every: int | None, at_start: bool) -> None:
    config = TrainConfig.model_validate(
        {"output": "out", "steps": steps, "validation": {"share": 0.1, "every": every, "at_start": at_start}}
    ).validation
    assert config is not None
    due = [step for step in range(steps + 1) if config.is_due(step, steps)]
    assert len(due) == config.validations(steps) and due[-1] == steps
    if every is None:
        assert len(due) <= 11


def stop_in_evaluation(call: int, patch: pytest.MonkeyPatch) -> None:
    """Send this process SIGINT at the beginning of a validation, once."""
    original, calls = validations.evaluate, [0]

    def stopping(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGINT)
        return original(*arguments, **options)

    patch.setattr(validations, "evaluate", stopping)
