"""`alignkd eval --status`: progress of evaluations, from their files alone."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.evaluation import parts as parts_module
from alignkd.pipeline.evaluation.journal import Answered, Journal, Process
from alignkd.pipeline.evaluation.parts import BLOCK
from alignkd.pipeline.evaluation.status import eval_status, status_lines
from alignkd.teacher_dump.operation.status import WorkerStatus, status_place
from alignkd.vlm.errors import InputError

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
Write = Callable[..., Path]
PROCESS = Process(device="cpu", batch=16, versions={})


@pytest.fixture
def write_eval(tmp_path: Path) -> Write:
    """write_eval("out", gqa=(10, 4, 1)): ten questions, of which four have an answer and one could not be asked."""

    def write(folder: str, *, limit: int | None = None, **benchmarks: tuple[int, int, int]) -> Path:
        out = tmp_path / folder
        out.mkdir(parents=True, exist_ok=True)
        (out / "run.json").write_text(json.dumps({"checkpoint": "my/model", "model_id": "model", "dtype": "float16"}))
        for name, (questions, answered, unusable) in benchmarks.items():
            parts = out / name / "parts"
            parts.mkdir(parents=True)
            (out / name / "questions.json").write_text(json.dumps({"questions": questions, "limit": limit}))
            asked = [Answered(position=one, text="a") for one in range(answered)]
            asked += [Answered(position=answered + one, unusable="broken") for one in range(unusable)]
            for block in range(-(-questions // BLOCK)):
                positions = range(block * BLOCK, (block + 1) * BLOCK)
                with Journal(parts / f"{block:08d}.jsonl", positions, PROCESS) as journal:
                    journal.add(one for one in asked if one.position in positions)
        return out

    return write


def rows(path: Path) -> list[list[str]]:
    """The lines of the table, split at two blanks."""
    lines = list(status_lines(eval_status(path)))
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_answers_of_all_blocks_count_with_their_score(write_eval: Write) -> None:
    out = write_eval("out", mme=(300, 300, 0), gqa=(300, 130, 2))
    (out / "mme" / "score.json").write_text(json.dumps({"table_value": 1302.84}))
    (out / "gqa" / "score.json").write_text(json.dumps({"no_score": "168 of 300 questions are not asked yet"}))
    assert rows(out) == [
        [f"{out}: stopped, my/model in float16"],
        ["benchmark", "state", "answered", "unusable", "score", "per second", "left"],
        ["GQA", "stopped", "130 of 300", "2", "-", "-", "-"],
        ["MME", "complete", "300 of 300", "0", "1302.8", "-", "-"],
        ["not begun: ScienceQA-IMG, TextVQA, MMBench dev, POPE"],
        ["no process answers questions; run the same `alignkd eval` again to resume"],
    ]
    (status,) = eval_status(out)
    assert (status.not_begun, status.benchmarks[0].seconds_left) == (("sqa", "textvqa", "mmbench", "pope"), None)


def test_a_process_that_runs_gives_rate_and_time(write_eval: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    out = write_eval("out", gqa=(100, 40, 10))
    parts = parts_module.AnswerParts(out / "gqa", [])
    places = [status_place(parts, f"{rank}/2") for rank in range(2)]
    for rank, place in enumerate(places):
        place.write(WorkerStatus(worker=f"{rank}/2", rate=2.5))
    (status,) = eval_status(out)
    (gqa,) = status.benchmarks
    assert (status.state, gqa.state, gqa.rate, gqa.seconds_left) == ("running", "running", 5.0, 10.0)
    assert rows(out)[2] == ["GQA", "running", "40 of 100", "10", "-", "5.00", "10 s"]
    assert "resume" not in str(rows(out))
    for place in places:
        place.close(complete=False)
    assert eval_status(out)[0].state == "stopped"  # they died, and published no end


def test_a_part_of_the_questions_has_its_mean(write_eval: Write) -> None:
    out = write_eval("out", limit=3, mme=(3, 3, 0))
    (out / "mme" / "score.json").write_text(json.dumps({"part": {"questions": 3, "mean_score": 0.75}}))
    assert rows(out)[2] == ["MME, first 3", "complete", "3 of 3", "0", "75.00", "-", "-"]
    assert eval_status(out)[0].state == "complete"


@pytest.mark.parametrize("place", ["run/eval", "elsewhere"])
def test_a_run_has_the_evaluations_of_its_models(place: str, write_eval: Write, tmp_path: Path) -> None:
    """The output of a training has a `run.json` of its own."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"data": []}))
    with pytest.raises(InputError, match="no evaluation has begun here; give the --out folder"):
        eval_status(run)
    for model in ("teacher", "student", "baseline"):
        write_eval(f"{place}/{model}", gqa=(2, 1, 0))
    write_eval(f"{place}/another")
    if place == "elsewhere":
        (run / "eval.json").write_text(json.dumps({"out": str(tmp_path / place)}))
    found = [Path(status.path).name for status in eval_status(run)]
    assert found == ["student", "baseline", "teacher", "another"]
    assert [Path(status.path).name for status in eval_status(tmp_path / place)] == found


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("gqa/questions.json", "{"),
        ("gqa/questions.json", '{"limit": null}'),
        ("gqa/score.json", "[]"),
        ("gqa/score.json", '{"part": {}}'),
    ],
)
def test_a_damaged_file_is_one_line(
    file: str, content: str, write_eval: Write, alignkd_here: Alignkd, tmp_path: Path
) -> None:
    out = write_eval("out", gqa=(2, 2, 0))
    (out / file).write_text(content)
    done = alignkd_here("eval", "--status", out)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1) and str(out / file) in done.stderr


def test_the_command_changes_nothing_and_takes_no_other_option(write_eval: Write, alignkd_here: Alignkd) -> None:
    out = write_eval("out", gqa=(10, 4, 0))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    found = json.loads(alignkd_here("eval", "--status", out, "--json").stdout)
    assert [(one["state"], one["benchmarks"][0]["answered"]) for one in found] == [("stopped", 4)]
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    def refused(*words: object) -> str:
        done = alignkd_here("eval", *words)
        assert done.returncode == 2
        return done.stderr

    assert "CHECKPOINT|CONFIG, --data: --status OUT takes" in refused("model", "--data", out, "--status", out)
    assert alignkd_here("eval", "--status", out.parent / "nowhere").returncode == 1


def test_a_real_evaluation_before_and_after_its_end(
    alignkd_here: Alignkd, brief_model: Path, golden: Path, data_root: Path, tmp_path: Path
) -> None:
    words: Sequence[Any] = (
        "eval", brief_model, "--vision-config", golden / "clip", "--dtype", "float32", "--data", data_root,
        "--benchmark", "pope", "--out", tmp_path / "out",
    )  # fmt: skip
    assert alignkd_here(*words).returncode == 0
    (status,) = eval_status(tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (status.state, status.benchmarks[0].score) == ("complete", results["row"]["pope"])
    # an answer less
    journal = tmp_path / "out" / "pope" / "parts" / "00000000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    (status,) = eval_status(tmp_path / "out")
    assert (status.state, status.benchmarks[0].answered, status.benchmarks[0].score) == ("stopped", 31, None)


def test_a_status_loads_no_torch(write_eval: Write) -> None:
    out = write_eval("out", gqa=(10, 4, 0))
    code = (
        "import sys; from alignkd.pipeline.cli import main; "
        f"main(['eval', '--status', {str(out)!r}], standalone_mode=False); "
        "sys.exit(bool({'torch', 'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0
