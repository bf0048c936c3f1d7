"""`alignkd train --status` and `alignkd train export`: a run that runs, was stopped or has ended."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prepared_processes import PreparedProcesses

from alignkd.pipeline.runs.student.train_export import job_of
from alignkd.pipeline.runs.student.train_status import train_status
from alignkd.storage.schema.sealed_json import seal, unseal
from alignkd.student_train.run.mixture import mixture_of

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


@pytest.fixture
def status(alignkd_here: Alignkd) -> Callable[..., Any]:
    """`status(output)`: its lines; with "--json" its object."""

    def look(output: Path, *options: str) -> Any:
        before = snapshot(output)
        found = alignkd_here("train", "--status", output, *options)
        assert found.returncode == 0, found.stderr
        assert snapshot(output) == before
        return json.loads(found.stdout) if options else found.stdout.splitlines()

    return look


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Time and size of every file: a status changes nothing."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


@pytest.fixture
def many_steps(write_config: WriteConfig, alignkd_here: Alignkd) -> Path:
    """A configuration whose store is there, and whose run lasts until it is stopped."""
    config = write_config(train={"steps": 20000, "micro_batch": 1, "checkpoint_every": 3, "keep_checkpoints": 2})
    assert alignkd_here("dump", config).returncode == 0
    return config


def test_a_run_is_seen_from_its_start_to_its_end(
    many_steps: Path,
    write_config: WriteConfig,
    alignkd_here: Alignkd,
    status: Callable[..., Any],
    prepared: PreparedProcesses,
    wait_until: Callable[..., None],
    patience: float,
    tmp_path: Path,
) -> None:
    output = tmp_path / "out"
    process = prepared.start("-m", "alignkd.pipeline.cli", "train", many_steps)
    try:
        seen: dict[str, Any] = {}

        def has_checkpoints() -> bool:
            assert process.poll() is None, process.communicate()
            # not by the command: between two looks at the folder the run writes
            if (output / "metrics.jsonl").exists():
                seen.update(vars(train_status(output)))
            return len(seen.get("checkpoints", ())) == 2 and seen["step"] >= 9

        wait_until(has_checkpoints, "two checkpoints")
        assert (seen["state"], seen["pid"], seen["steps"]) == ("running", process.pid, 20000)
        assert seen["seconds_per_step"] > 0 and seen["seconds_left"] > seen["seconds_per_step"] * 19000
        assert seen["step"] >= seen["checkpoint_step"] >= 6 and 0 <= seen["checkpoint_seconds_old"] < patience
        assert seen["loss"] > 0 and seen["loss_before"] > 0 and seen["loss_steps"] >= 1
        exported = alignkd_here("train", "export", output, "--out", tmp_path / "student-now", "--json")
        assert exported.returncode == 0, exported.stderr
        assert json.loads(exported.stdout)["step"] >= 6 and (tmp_path / "student-now" / "student").is_dir()
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(patience)
    stopped = status(output, "--json")
    assert (stopped["state"], stopped["pid"], stopped["seconds_left"]) == ("interrupted", None, None)
    assert stopped["step"] == stopped["checkpoint_step"] == stopped["checkpoints"][-1]
    assert status(output)[-1].endswith(f"run the same `alignkd train` again to resume after step {stopped['step']}")

    length = {"steps": stopped["step"] + 2, "micro_batch": 1, "output": str(tmp_path / "longer")}
    extend = {"run": str(output), "schedule": "linear"}
    assert alignkd_here("train", write_config("longer.yaml", train=length | {"extend": extend})).returncode == 0
    found = status(tmp_path / "longer", "--json")
    assert (found["state"], found["step"], found["steps"]) == ("finished", length["steps"], length["steps"])
    assert "finished: the student is" in status(tmp_path / "longer")[-1]

    report = json.loads(alignkd_here("report", tmp_path / "longer", output, "--json").stdout)
    (run,) = report
    assert [step for step, _ in run["curves"]["loss"]] == list(range(1, length["steps"] + 1))
    assert (run["name"], run["extends"], run["state"]) == ("longer", str(output), "finished")
    assert run["samples_seen"] == sum(run["samples_by_kind"][kind] for kind in ("one_image", "text_only"))
    assert len(json.loads(alignkd_here("report", tmp_path / "longer", "--json").stdout)[0]["curves"]["loss"]) == 2


def line(step: int, **values: Any) -> str:
    figures = {"step": step, "loss": 5.0 - step / 10, "samples_seen": 4 * step, "skipped": False, "seconds": 2.0}
    return json.dumps(figures | values) + "\n"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The files of a run of 20 steps that was killed at step 10, by hand."""
    output = tmp_path / "written"
    (output / "checkpoints" / "step-00000008").mkdir(parents=True)
    state = {"step": 8, "samples_seen": 32, "skipped_steps": 1, "settings": {"steps": 20}}
    (output / "checkpoints" / "step-00000008" / "state.json").write_bytes(seal(state))
    (output / "run.lock").touch()
    (output / "metrics.jsonl").write_text("".join(line(step, skipped=step in (4, 10)) for step in range(1, 11)))
    return output


def test_figures(written: Path, status: Callable[..., Any]) -> None:
    found = status(written, "--json")
    assert (found["step"], found["steps"], found["samples_seen"], found["seconds_per_step"]) == (10, 20, 40, 2.0)
    assert (found["loss"], found["loss_before"], found["loss_steps"]) == (pytest.approx(4.2), pytest.approx(4.7), 5)
    assert found["skipped_steps"] == 2  # one before the checkpoint, one after it
    assert status(written)[0] == f"{written}: interrupted, 50.0%, step 10 of 20, 2 s/step"


def test_damaged_and_half_written_files(written: Path, status: Callable[..., Any]) -> None:
    metrics = written / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    lines[3:5] = ["\x00\x00\x00\n", '{"step": 5, "lo\n']
    lines[8] = json.dumps(json.loads(lines[8]) | {"loss": 10**400, "seconds": 1e308}) + "\n"
    metrics.write_text("".join(lines) + '{"step": 11, "loss": 1.')
    (written / "checkpoints" / "step-00000009").mkdir()
    (written / "finished.json").write_text("{")
    found = status(written, "--json")
    assert (found["step"], found["damaged_lines"], found["checkpoint_step"]) == (10, 2, 9)
    assert any("finished.json: damaged" in remark for remark in found["remarks"])
    shown = status(written)
    assert "metrics.jsonl: 2 lines cannot be read" in shown and "checkpoint of step 9 is damaged" in shown
    metrics.write_bytes(b"\xff\xfe\n")
    (written / "checkpoints").rename(written / "away")
    found = status(written, "--json")
    assert (found["step"], found["steps"], found["loss"], found["checkpoint_step"]) == (0, None, None, None)
    assert "to start from the beginning" in status(written)[-1]


def test_validation_and_the_best_step(written: Path, status: Callable[..., Any], alignkd_here: Alignkd) -> None:
    refused = alignkd_here("train", "export", written, "--best", "--out", written.parent / "best")
    assert refused.returncode == 1 and "has no checkpoint of a best validation" in refused.stderr
    lines = [(4, 2.5, 4, 2.5), (8, 2.0, 8, 2.0), (10, None, 8, 2.0)]
    names = ("step", "loss", "best_step", "best")
    text = "".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines)
    (written / "validation.jsonl").write_text(text + '{"step": 12')
    found = status(written, "--json")
    assert (found["best_validation_step"], found["best_validation"]) == (8, 2.0)
    assert "best validation 2.0000 at step 8" in status(written)


def test_a_run_of_an_earlier_version(
    write_config: WriteConfig, alignkd_here: Alignkd, status: Callable[..., Any], tmp_path: Path
) -> None:
    """Its configuration was `config.json`, and it had no lock."""
    output = tmp_path / "out"
    config = write_config(train={"steps": None, "epochs": 1})
    assert [alignkd_here(phase, config).returncode for phase in ("dump", "train")] == [0, 0]
    expected = (output / "student" / "model.safetensors").read_bytes()
    (output / "run.json").rename(output / "config.json")
    (output / "run.lock").unlink()
    assert status(output, "--json")["state"] == "finished"
    exported = alignkd_here("train", "export", output, "--step", 2, "--out", tmp_path / "exported")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "exported" / "student" / "model.safetensors").read_bytes() == expected
    state = output / "checkpoints" / "step-00000002" / "state.json"
    state.write_bytes(seal({**unseal(state), "validation": {"best_step": 2}}))
    best = alignkd_here("train", "export", output, "--best", "--out", tmp_path / "exported", "--json")
    assert json.loads(best.stdout)["step"] == 2
    gone = alignkd_here("train", "export", output, "--step", 1, "--out", tmp_path / "exported")
    assert gone.returncode == 1 and "no checkpoint of step 1; there are those of steps 2" in gone.stderr
    # the tower's configuration is found from the exported folder alone
    assert alignkd_here("models", tmp_path / "exported" / "student").returncode == 0

    (output / "finished.json").unlink()
    shutil.rmtree(output / "checkpoints")
    found = status(output, "--json")
    # the length in steps from the epochs, the store and the first steps
    assert (found["state"], found["step"], found["steps"]) == ("interrupted", 2, 2)
    # samples that are held out are not trained on: of four samples, two make one step
    configuration = json.loads((output / "config.json").read_text())
    configuration["train"] |= {"validation": {"share": 0.5}, "epochs": 7}
    (output / "config.json").write_text(json.dumps(configuration))
    assert status(output, "--json")["steps"] == -(-7 * mixture_of(job_of(output)).per_pass // 2)
    shutil.rmtree(tmp_path / "store")
    assert status(output, "--json")["steps"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train"], 2, "give either CONFIG, to train, or --status OUTPUT"),
        (["train", "run.yaml", "--status", "out"], 2, "give either CONFIG"),
        (["train", "--status", "out", "--stage", "a"], 2, "--stage needs CONFIG"),
        (["train", "run.yaml", "more"], 2, "unexpected extra argument"),
        (["train", "--status", "nowhere"], 1, "nowhere: is not a folder; give the output folder of `alignkd train`"),
        (["train", "--status", "."], 1, "holds no training run; give the output folder"),
        (["train", "export"], 2, "Missing argument 'OUTPUT'"),
        (["train", "export", "."], 2, "Missing option '--out'"),
        (["train", "export", ".", "--out", "x", "--best", "--step", "3"], 2, "give --step or --best, not both"),
        (["train", "export", "nowhere", "--out", "x"], 1, "nowhere: has no run.json with the configuration"),
        (["train", "export", "run", "--out", "run/x"], 1, "--out run/x: lies in the output of the run run"),
        (["train", "export", "run", "--out", "full"], 1, "--out full: is not empty and was not made by this command"),
        (["train", "./export"], 1, "alignkd: export (in full"),
        (["train", "./export", "--json"], 1, "alignkd: export (in full"),
    ],
)
def test_usage(
    arguments: list[str],
    code: int,
    message: str,
    alignkd_here: Alignkd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "run").mkdir()
    found = alignkd_here(*arguments)
    assert found.returncode == code
    assert message in found.stderr
    assert code == 2 or len(found.stderr.splitlines()) == 1


def test_a_configuration_named_export_trains(
    write_config: WriteConfig, alignkd_here: Alignkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = write_config("export", train={"steps": 1, "micro_batch": 1, "preset": "supervised"})
    assert alignkd_here("dump", config).returncode == 0
    trained = alignkd_here("train", "./export", "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["step"] == 1


def test_a_status_loads_no_torch(written: Path) -> None:
    code = (
        "import sys; from alignkd.pipeline.cli import main; "
        f"main(['train', '--status', {str(written)!r}], standalone_mode=False); "
        "sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
