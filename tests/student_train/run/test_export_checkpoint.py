"""Export of a checkpoint equals, byte for byte, what the run exports when it ends at this step."""

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from alignkd.storage.files.checksum import file_crc32c
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.student_train.checkpoints.checkpoint import all_checkpoints
from alignkd.student_train.errors import TrainError
from alignkd.student_train.job import TrainJob
from alignkd.student_train.run.output import export_checkpoint as module
from alignkd.student_train.run.output.export_checkpoint import export_checkpoint
from alignkd.student_train.trainer import train

MakeJob = Callable[..., TrainJob]


def files_of(folder: Path) -> dict[Path, bytes]:
    """Student and adapters, by path."""
    paths = [folder / "adapters.safetensors", *(folder / "student").rglob("*")]
    return {path.relative_to(folder): path.read_bytes() for path in paths if path.is_file()}


def rewritten(checkpoint: Path, **changes: Any) -> None:
    """Seal a checkpoint again over its present files, with keys of its document changed; None removes a key."""
    document = {**unseal(checkpoint / "state.json"), **changes}
    files = {path.name: [path.stat().st_size, file_crc32c(path)] for path in checkpoint.glob("*.safetensors")}
    document = {name: value for name, value in document.items() if value is not None}
    (checkpoint / "state.json").write_bytes(seal({**document, "files": files}))


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "preset": "supervised"},  # adapters that are not trained
    ],
)
def test_it_is_the_export_of_the_run(
    settings: dict[str, Any], many_store: Path, make_job: MakeJob, golden_folder: Path, tmp_path: Path
) -> None:
    """Without the store, the files of optimiser state, and the adapters of an earlier stage if they are trained."""
    adapters = tmp_path / "adapters.safetensors"
    shutil.copy(golden_folder / "adapters.safetensors", adapters)
    job = make_job(many_store, steps=3, checkpoint_every=1, keep_checkpoints=3, adapters=adapters, **settings)
    train(job)
    if "preset" not in settings:
        adapters.unlink()
    for path in (job.train.output / "checkpoints").rglob("exp_avg*"):
        path.unlink()
    job = replace(job, store=tmp_path / "no-store", dtype="float32")
    found = export_checkpoint(job, None, tmp_path / "exported")
    assert (found.step, found.samples_seen) == (3, 6)
    assert files_of(tmp_path / "exported") == files_of(job.train.output)
    (tmp_path / "exported" / "lora").mkdir()  # of an earlier export of another run
    earlier = export_checkpoint(job, 2, tmp_path / "exported")  # replaces it
    assert not (tmp_path / "exported" / "lora").exists()
    assert earlier.step == 2
    assert files_of(tmp_path / "exported") != files_of(job.train.output)


def test_checkpoints_of_earlier_versions(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """They do not hold the sizes of the adapters: those come from the weights of the adapters, else from the store."""
    for name, settings in (("distilled", {}), ("supervised", {"preset": "supervised"})):
        job = make_job(many_store, output=tmp_path / name, steps=1, **settings)
        train(job)
        (checkpoint,) = all_checkpoints(tmp_path / name / "checkpoints")
        rewritten(checkpoint, adapters=None, kept=None)
        given = replace(job, store=tmp_path / "no-store") if name == "distilled" else job
        export_checkpoint(given, 1, tmp_path / f"exported-{name}")
        assert files_of(tmp_path / f"exported-{name}") == files_of(job.train.output)


def test_it_works_while_the_run_goes_on(
    many_store: Path, make_job: MakeJob, start_child: Any, one_thread: None, wait_until: Any, tmp_path: Path
) -> None:
    """The run is stopped (SIGSTOP) in step 3, holds its lock, and ends after the export as if nothing had been."""
    job = make_job(many_store, steps=4, checkpoint_every=1)
    child = start_child(job, ("trainer", "_optimiser_step", 3, signal.SIGSTOP))
    wait_until(lambda: module.steps_of(job.train.output) == [1, 2], "the checkpoint of step 2")
    export_checkpoint(job, 2, tmp_path / "exported")
    child.send_signal(signal.SIGCONT)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    of_two_steps = make_job(many_store, output=tmp_path / "two", steps=4, checkpoint_every=1)
    stopped = start_child(of_two_steps, ("trainer", "_optimiser_step", 2, signal.SIGTERM))
    stopped.communicate(timeout=600)
    weights = load_file(tmp_path / "exported" / "student" / "model.safetensors")
    (path,) = (tmp_path / "two" / "checkpoints" / "step-00000002").glob("weights-*")
    masters = {name.removeprefix("model."): value for name, value in load_file(path).items()}
    shared = weights.keys() & masters.keys()
    assert len(shared) > 10 and all(weights[name].equal(masters[name]) for name in shared)


def test_refusals(
    many_store: Path, make_job: MakeJob, golden_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(many_store, steps=3, checkpoint_every=1)
    with pytest.raises(TrainError, match="has no checkpoint; give the output folder"):
        export_checkpoint(job, None, tmp_path / "exported")
    train(job)
    with pytest.raises(TrainError, match="has no checkpoint of step 1; there are those of steps 2, 3"):
        export_checkpoint(job, 1, tmp_path / "exported")

    other = tmp_path / "other"
    shutil.copytree(golden_folder / "student", other)
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, other / "model.safetensors")
    with pytest.raises(TrainError, match=r"its fingerprint is \w{16}, the run .* started from \w{16}"):
        export_checkpoint(replace(job, student=other), 3, tmp_path / "exported")

    newest = job.train.output / "checkpoints" / "step-00000003"
    with pytest.raises(TrainError, match=r"its weights are not those that this run trains \(adapters\."):
        supervised = make_job(many_store, steps=3, preset="supervised")
        export_checkpoint(supervised, 3, tmp_path / "exported")
    (path,) = newest.glob("weights-*")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        TrainError, match=r"step-00000003: damaged .*choose another step; there are those of steps 2, 3"
    ):
        export_checkpoint(job, 3, tmp_path / "exported")
    masters = load_file(newest.parent / "step-00000002" / path.name)
    name = next(iter(masters))
    masters[name].view(-1)[0] = float("nan")
    save_file(masters, path)
    rewritten(newest)
    with pytest.raises(TrainError, match=rf"after step 3 {name} is not finite; nothing is exported"):
        export_checkpoint(job, 3, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()

    for name in ("sound_checkpoint", "Parts"):  # the run drops it before it is verified, or before it is loaded
        gone = job.train.output / "checkpoints" / "step-00000002"
        shutil.copytree(gone, tmp_path / "kept", dirs_exist_ok=True)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, dropping(getattr(module, name), gone))
            with pytest.raises(TrainError, match="step-00000002: was removed while it was read, because the run goes"):
                export_checkpoint(job, 2, tmp_path / "exported")
        shutil.copytree(tmp_path / "kept", gone)


def dropping(original: Any, path: Path) -> Any:
    def dropped(*args: Any, **options: Any) -> Any:
        shutil.rmtree(path)
        return original(*args, **options)

    return dropped


def test_kept_checkpoints_remain(many_store: Path, make_job: MakeJob, tmp_path: Path) -> None:
    """Ten samples in batches of four: a pass ends in steps 3, 5 and 8; the settings may change at a resume."""
    settings = {"micro_batch": 4, "steps": 8, "keep_checkpoints": 1, "preset": "supervised"}
    train(make_job(many_store, keep_each_epoch=True, **settings))
    assert module.steps_of(tmp_path / "out") == [3, 5, 8]
    every = make_job(many_store, output=tmp_path / "every", keep_every=3, checkpoint_every=1, **settings)
    train(every)
    assert module.steps_of(tmp_path / "every") == [3, 6, 8]
    (tmp_path / "every" / "finished.json").unlink()
    shutil.rmtree(tmp_path / "every" / "checkpoints" / "step-00000008")
    train(make_job(many_store, output=tmp_path / "every", checkpoint_every=1, **settings))
    assert module.steps_of(tmp_path / "every") == [3, 6, 8]
