"""`alignkd run` and `alignkd eval` with a configuration that has a section `eval`."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import halting_run
import pytest
import yaml
from click.testing import Result
from halting_run import invoke_here, phase_here
from prepared_processes import PreparedProcesses

from alignkd.pipeline.config.eval_place import evaluations_of
from alignkd.pipeline.runs import stages as run_stages

Invoke = Callable[..., Result]
WriteConfig = Callable[..., Path]
WaitUntil = Callable[[Callable[[], Any], str], None]
NUM_QUESTIONS = 32


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """in_process("run", path): the command and its phases in this process, which has imported everything already."""

    monkeypatch.setattr(run_stages, "run_alignkd", phase_here)
    return invoke_here


@pytest.fixture
def write_evaluated(write_config: WriteConfig, brief_model: Path, data_root: Path) -> WriteConfig:
    """write_evaluated(**evaluation): a model with short answers distilled into itself, and evaluated on GQA."""

    def write(name: str = "run.yaml", stages: Any = None, **evaluation: Any) -> Path:
        model = {"checkpoint": str(brief_model)}
        path = write_config(name, teacher=model, student=model, train={"report_to": "none"})
        values = yaml.safe_load(path.read_text())
        values["eval"] = {"data": str(data_root), "benchmarks": "gqa", "dtype": "float32"} | evaluation
        path.write_text(yaml.safe_dump(values | ({"stages": stages} if stages else {})))
        return path

    return write


def answers(folder: Path) -> bytes:
    return (folder / "gqa" / "answers.jsonl").read_bytes()


def test_a_run_ends_with_the_evaluation_also_after_a_stop(
    in_process: Invoke,
    write_evaluated: WriteConfig,
    brief_model: Path,
    data_root: Path,
    golden: Path,
    wait_until: WaitUntil,
    prepared: PreparedProcesses,
    patience: float,
    tmp_path: Path,
) -> None:
    config, out = write_evaluated(baseline=str(brief_model), teacher=True, batch=1), tmp_path / "out"
    journal = out / "eval" / "student" / "gqa" / "parts" / "00000000.jsonl"

    def answered() -> int:
        return journal.read_bytes().count(b'"position"') if journal.exists() else 0

    # a process that trained would leave a fork without the threads of its process group
    process = prepared.start(halting_run.__file__, config, 3)
    wait_until(lambda: answered() >= 3 or process.poll() is not None, "three answers")
    process.send_signal(signal.SIGINT)
    assert process.wait(patience) == 128 + signal.SIGINT, process.errors()
    before = journal.read_bytes()
    assert answered() < NUM_QUESTIONS and not (out / "eval" / "student" / "gqa" / "answers.jsonl").exists()
    trained = (out / "student" / "model.safetensors").read_bytes()

    finished = in_process("run", config, "--json")
    assert finished.exit_code == 0, finished.stderr
    reports = json.loads(finished.stdout)
    assert list(reports) == ["train", "eval"] and list(reports["eval"]) == ["student", "baseline", "teacher"]
    assert (out / "student" / "model.safetensors").read_bytes() == trained
    assert journal.read_bytes().startswith(before)  # what was answered is not asked again
    for model, results in reports["eval"].items():
        assert results == json.loads((out / "eval" / model / "results.json").read_text())
        assert results["benchmarks"]["gqa"]["answered"] == NUM_QUESTIONS and results["row"]["gqa"] >= 0

    # the same as by hand
    by_hand = in_process(
        "eval", out / "student", "--benchmark", "gqa", "--data", data_root, "--dtype", "float32", "--batch", 1,
        "--out", tmp_path / "by-hand", "--vision-config", golden / "clip",
    )  # fmt: skip
    assert by_hand.exit_code == 0, by_hand.stderr
    assert answers(tmp_path / "by-hand") == answers(out / "eval" / "student")
    # trained in float32, the student's weights are others than those that it started from
    weights = {model: results["weights"] for model, results in reports["eval"].items()}
    assert weights["student"] != weights["baseline"] == weights["teacher"]

    asked_before = {path: path.read_bytes() for path in (out / "eval").rglob("*") if path.is_file()}
    # another section `eval` does not train again, and what decides no answer asks nothing again
    again = in_process("run", write_evaluated(batch=2))
    assert again.exit_code == 0, again.stderr
    assert [line for line in again.stdout.splitlines() if line.startswith("alignkd ")] == [f"alignkd eval {config}"]
    assert "nothing left to do: 2 steps are done" in again.stdout and "device" not in again.stderr
    assert again.stdout.endswith(f"side by side: alignkd report {out} --out FOLDER\n")
    assert {path: path.read_bytes() for path in (out / "eval").rglob("*") if path.is_file()} == asked_before

    # the data of what is finished may be removed
    (data_root / "gqa" / "images" / "n003.jpg").unlink()
    config = write_evaluated(baseline=str(brief_model), teacher=True)
    lines = in_process("run", config).stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["nothing left to do", "nothing left to evaluate"]
    assert f"scores in {out / 'eval'}" in lines[1] and "n003.jpg" in lines[1]
    shutil.rmtree(data_root)
    kept = in_process("run", config, "--json")
    assert kept.exit_code == 0 and json.loads(kept.stdout)["eval"] == reports["eval"]
    for other in ({"dtype": "float16"}, {"benchmarks": "gqa,pope"}, {"limit": 3}):
        refused = in_process("run", write_evaluated(**other))
        assert refused.exit_code == 1 and f"{data_root}: no such folder" in refused.stderr, (other, refused.stdout)
    write_evaluated()

    status = json.loads(in_process("train", "--status", out, "--json").stdout)
    assert status["scores"] == {"gqa": reports["eval"]["student"]["row"]["gqa"]}
    assert f"scores: gqa {status['scores']['gqa']:.2f}" in in_process("train", "--status", out).stdout
    (reported, baseline) = json.loads(in_process("report", out, "--json").stdout)
    assert reported["steps"] == 2 and reported["evaluation"]["checkpoint"] == str(out / "student")
    assert baseline["name"] == "baseline"  # the teacher is the same model
    (score,) = reported["evaluation"]["scores"]
    rows = {model: results["row"]["gqa"] for model, results in reports["eval"].items()}
    assert score["to_baseline"] == pytest.approx(rows["student"] - rows["baseline"])


def test_what_is_wrong_with_the_benchmarks_shows_before_the_teacher_runs(
    in_process: Invoke, write_evaluated: WriteConfig, data_root: Path, tmp_path: Path
) -> None:
    def error(**evaluation: Any) -> str:
        done = in_process("run", write_evaluated(**evaluation))
        assert done.exit_code == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()
        return done.stderr

    assert f"{tmp_path / 'nowhere'}: no such folder" in error(data=str(tmp_path / "nowhere"))
    assert "eval.baseline" in error(baseline=str(tmp_path / "nobody"))
    (data_root / "gqa" / "images" / "n003.jpg").unlink()
    assert "n003.jpg" in error()
    stages = [
        {"name": "first", "train": {"output": str(tmp_path / "out" / "a"), "steps": 1}, "eval": {"benchmarks": "pope"}},
        {"name": "second", "train": {"output": str(tmp_path / "out" / "b"), "steps": 1}},
    ]
    assert "n003.jpg" in error(stages=stages)  # of the second stage


def test_a_configuration_is_evaluated_where_it_has_the_section(
    in_process: Invoke, write_evaluated: WriteConfig, write_config: WriteConfig, brief_model: Path, tmp_path: Path
) -> None:
    def error(*words: object) -> str:
        done = in_process("eval", *words)
        assert done.exit_code in (1, 2)
        return done.stderr

    plain = write_config("plain.yaml")
    assert "plain.yaml: section eval is missing, alignkd eval needs it" in error(plain)
    assert "nowhere.yaml" in error(tmp_path / "nowhere.yaml")
    config = write_evaluated(limit=2)
    assert "out/student: no such student yet; train it first (`alignkd train`)" in error(config)
    assert not (tmp_path / "out").exists()
    shutil.copytree(brief_model, tmp_path / "out" / "student")
    assert "eval.baseline: " in error(write_evaluated(baseline=str(tmp_path / "nobody")))
    assert not (tmp_path / "out" / "eval").exists()  # before the student is asked anything
    assert "--data, --dtype: CONFIG has keys for this in its section eval" in error(
        config, "--data", tmp_path, "--dtype", "float32"
    )
    assert "--stage needs a configuration file" in error(brief_model, "--data", tmp_path, "--stage", "first")


def test_stages_are_evaluated_by_their_own_sections(
    in_process: Invoke, write_evaluated: WriteConfig, brief_model: Path, tmp_path: Path
) -> None:
    """The students are copies: only what is asked of whom matters."""
    stages = [{"name": name, "train": {"output": str(tmp_path / name), "steps": 1}} for name in ("first", "second")]
    section = yaml.safe_load(write_evaluated(limit=2, out=str(tmp_path / "scores")).read_text())["eval"]
    stages[1] |= {"eval": section}
    config = write_evaluated(stages=stages)
    values = yaml.safe_load(config.read_text())
    del values["eval"]
    config.write_text(yaml.safe_dump(values))
    for name in ("first", "second"):
        shutil.copytree(brief_model, tmp_path / name / "student")
    done = in_process("eval", config, "--json")
    assert done.exit_code == 0, done.stderr
    (found,) = json.loads(done.stdout).values()
    assert found["student"]["benchmarks"]["gqa"]["limit"] == 2
    assert (tmp_path / "scores" / "student" / "results.json").exists()
    assert evaluations_of(tmp_path / "second") == {"student": tmp_path / "scores" / "student"}
    assert evaluations_of(tmp_path / "first") == {}
    again = in_process("eval", config, "--stage", "second", "--json")
    assert json.loads(again.stdout) == found
    assert "section eval of stage first is missing" in in_process("eval", config, "--stage", "first").stderr
    # other settings than those of before
    values["stages"][1]["eval"]["dtype"] = "bfloat16"
    config.write_text(yaml.safe_dump(values))
    refused = in_process("eval", config)
    assert refused.exit_code == 1 and "dtype is 'float32', now 'bfloat16'" in refused.stderr
    assert "eval.out" in refused.stderr and "alignkd eval --force" in refused.stderr
    forced = in_process("eval", config, "--force", "--json")
    assert json.loads(forced.stdout)["second"]["student"]["dtype"] == "bfloat16"


def test_trackers_of_the_run_get_the_scores_of_the_student(
    write_evaluated: WriteConfig, in_process: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The benchmark that has a score, of the run's own folder; a run that wandb does not have is left alone."""
    from alignkd.student_train.metrics.trackers import of_run

    told: list[Any] = []

    class Follower:
        def __init__(self, run: Any) -> None:
            told.append(run)

        def close(self) -> None:
            pass

    config, out = write_evaluated(), tmp_path / "out"
    assert in_process("run", config).exit_code == 0
    monkeypatch.setattr(of_run, "Follower", Follower)
    values = yaml.safe_load(config.read_text())
    values["train"]["report_to"] = ["wandb", "trackio"]
    config.write_text(yaml.safe_dump(values))
    (out / "trackers").mkdir()
    (out / "trackers" / "trackio.json").write_text(json.dumps({"identifier": "abc", "settings": "s"}))
    assert in_process("eval", config).exit_code == 0
    (run,) = told
    results = json.loads((out / "eval" / "student" / "results.json").read_text())
    assert (run.tracker, run.output) == ("trackio", out)
    assert run.scores == {"gqa": results["benchmarks"]["gqa"]["table_value"]}
