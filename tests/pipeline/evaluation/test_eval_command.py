"""`alignkd eval`: files, scores, what a run that is repeated does, and one line for everything that is wrong."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.table import TABLE_1, table1_average
from alignkd.pipeline.evaluation.settings import model_name
from alignkd.pipeline.evaluation.table import published_rows, result_lines
from alignkd.vlm.families.mobilevlm.model.sizes import family_config

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def evaluated(alignkd_here: Alignkd, brief_model: Path, golden: Path, data_root: Path, tmp_path: Path) -> Run:
    """evaluated("gqa", *options): the finished command, in float32 unless chosen; answers in tmp_path/out."""

    def run(benchmarks: str, *options: object, checkpoint: Path = brief_model) -> "subprocess.CompletedProcess[str]":
        words = ["--benchmark", benchmarks, "--data", data_root, "--out", tmp_path / "out", "--dtype", "float32"]
        if checkpoint == brief_model:
            words += ["--vision-config", golden / "clip"]
        return alignkd_here("eval", checkpoint, *words, *options)

    return run


def one_line_error(done: "subprocess.CompletedProcess[str]") -> str:
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("alignkd: device cpu")]
    assert len(lines) == 1 and lines[0].startswith("alignkd: "), done.stderr
    return lines[0]


def test_all_six_benchmarks(
    evaluated: Run, alignkd_here: Alignkd, eval_golden: Path, data_root: Path, tmp_path: Path
) -> None:
    names = list(BENCHMARKS)
    done = evaluated(",".join(names))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["benchmarks"]) == names
    assert results["average"] == table1_average(results["row"]) is not None
    for name, found in results["benchmarks"].items():
        answers = tmp_path / "out" / name / "answers.jsonl"
        scored = alignkd_here("eval", "score", "--benchmark", name, "--data", data_root, "--answers", answers, "--json")
        score = json.loads(scored.stdout)
        assert {key: found[key] for key in score} == score
        assert (found["questions"], found["unusable"], found["devices"]) == (found["answered"], [], ["cpu"])
        ours, theirs = (read_lines(file) for file in (answers, eval_golden / name / "answers.jsonl"))
        assert [list(line) for line in ours] == [list(line) for line in theirs]
        own = ("text", "answer_id", "model_id")
        assert [without(line, own) for line in ours] == [without(line, own) for line in theirs]
        assert {line["model_id"] for line in ours} == {"brief-model"}
        assert len({line["answer_id"] for line in ours}) == len(ours) and len({line["text"] for line in ours}) > 1
    assert "average" in done.stdout and "POPE" in done.stdout
    assert done.stdout.splitlines()[0].endswith(f"brief-model: answers and scores in {tmp_path / 'out'}")


def test_the_default_is_float16_as_in_the_original(
    alignkd_here: Alignkd, brief_model: Path, golden: Path, data_root: Path, tmp_path: Path
) -> None:
    """On the CPU too; the benchmark's own folder given as --data."""
    words = ["--vision-config", golden / "clip", "--benchmark", "pope", "--data", data_root / "pope", "--limit", 2]
    done = alignkd_here("eval", brief_model, *words, "--out", tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert done.returncode == 0 and (results["dtype"], results["notes"]) == ("float16", [])
    assert results["benchmarks"]["pope"]["answered"] == 2


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def without(line: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in keys}


def test_a_second_run_asks_nothing_and_gives_the_same_files(evaluated: Run, tmp_path: Path) -> None:
    evaluated("gqa")
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    done = evaluated("gqa")
    assert done.returncode == 0 and "device" not in done.stderr  # the model is not loaded
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert not (out / "gqa" / ".status").exists()
    # a further benchmark joins the results
    assert list(json.loads(evaluated("mme", "--json").stdout)["benchmarks"]) == ["gqa", "mme"]


def test_a_part_of_the_questions_has_no_score(evaluated: Run, tmp_path: Path) -> None:
    done = evaluated("gqa,textvqa", "--limit", 3)
    assert done.returncode == 0 and done.stdout.count("not a number of the benchmark") == 2
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["row"] == {} and results["average"] is None
    found = results["benchmarks"]["gqa"]
    assert (found["headline"], found["limit"], found["part"]["questions"]) == (None, 3, 3)
    assert len(read_lines(tmp_path / "out" / "gqa" / "answers.jsonl")) == 3
    assert "limit is 3, now None" in one_line_error(evaluated("gqa"))


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_points_of_a_part_are_those_of_its_answers(name: str, eval_golden: Path, tmp_path: Path) -> None:
    """Of the golden answers: mean over the first half, item by item."""
    from alignkd.evaluation.answers import read_answers
    from alignkd.pipeline.evaluation.results import _part_json, unanswered

    data, half = eval_golden / name / "data", 16
    answers = read_answers(eval_golden / name / "answers.jsonl")[:half]
    questions = BENCHMARKS[name].questions(data)
    score = BENCHMARKS[name].score(data, [*answers, *(unanswered(one) for one in questions[half:])])
    items = json.loads((eval_golden / name / "expected.json").read_text())["items"][:half]
    points = [float(item["score"]) for item in items if item.get("score") is not None]
    part = _part_json(score, answers)["part"]
    assert part["questions"] == len(points) and part["mean_score"] == pytest.approx(sum(points) / len(points), abs=1e-9)


def test_broken_pictures_are_listed_and_prevent_the_score(evaluated: Run, data_root: Path, tmp_path: Path) -> None:
    evaluated("gqa")
    whole = (tmp_path / "out" / "gqa" / "answers.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "out")
    picture = data_root / "gqa" / "images" / "n003.jpg"
    content = picture.read_bytes()
    picture.write_bytes(content[:40])
    done = evaluated("gqa")
    assert done.returncode == 1 and "could not be asked; a score without them" in done.stdout
    assert "unusable: gqa: question" in done.stderr and "n003.jpg" in done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["gqa"]
    assert found["headline"] is None and len(found["unusable"]) == found["questions"] - found["answered"] > 0
    assert not (tmp_path / "out" / "gqa" / "answers.jsonl").exists()
    picture.write_bytes(content)
    assert evaluated("gqa").returncode == 0
    assert (tmp_path / "out" / "gqa" / "answers.jsonl").read_bytes() == whole


@pytest.mark.parametrize("is_broken", [False, True])
def test_of_the_processes_of_a_launcher_the_first_prints(
    is_broken: bool, evaluated: Run, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_broken:
        (data_root / "gqa" / "images" / "n003.jpg").write_bytes(b"")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        for options in ([], ["--json"]):
            done = evaluated("gqa", *options)
            if rank:  # an exit code would make the launcher end the first process before it prints
                assert (done.returncode, done.stdout) == (0, "")
                assert all(line.startswith("alignkd: device") for line in done.stderr.splitlines())
                continue
            assert done.returncode == int(is_broken), done.stderr
            assert json.loads(done.stdout)["benchmarks"] if options else "GQA" in done.stdout
    monkeypatch.setenv("RANK", "1")  # a worker that was given by hand has a terminal of its own
    assert "GQA" in evaluated("gqa", "--worker", "1/2").stdout


def test_other_settings_are_refused_with_both_values(
    evaluated: Run, data_root: Path, golden: Path, tmp_path: Path
) -> None:
    evaluated("gqa", "--limit", 2)
    assert "dtype is 'float32', now 'bfloat16'" in one_line_error(evaluated("gqa", "--dtype", "bfloat16", "--limit", 2))
    other = evaluated("gqa", "--limit", 2, "--vision-config", golden / "clip", checkpoint=golden / "teacher")
    assert "model_id is 'brief-model', now 'teacher'" in one_line_error(other)
    questions = data_root / "gqa" / "llava_gqa_testdev_balanced.jsonl"
    questions.write_text(questions.read_text().replace("Is the door open?", "Is a door open?"))
    line = one_line_error(evaluated("gqa", "--limit", 2))
    assert "questions.json: sha256 is" in line and "--force" in line
    before = read_lines(tmp_path / "out" / "gqa" / "answers.jsonl")
    assert evaluated("gqa", "--limit", 2, "--force").returncode == 0
    after = read_lines(tmp_path / "out" / "gqa" / "answers.jsonl")
    assert [after[0]["prompt"] == before[0]["prompt"], after[1]] == [False, before[1]]


def test_wrong_input_is_one_line_before_the_model_is_loaded(
    evaluated: Run, data_root: Path, brief_model: Path, tmp_path: Path, alignkd_here: Alignkd
) -> None:
    def error(benchmarks: str, *options: object, **given: Path) -> str:
        done = evaluated(benchmarks, *options, **given)
        assert "device" not in done.stderr
        return one_line_error(done)

    assert "no such folder" in error("gqa", "--data", tmp_path / "nowhere")
    assert "it is the folder of pope, not of gqa" in error("gqa", "--data", data_root / "pope")
    assert "nowhere" in error("gqa", checkpoint=tmp_path / "nowhere")
    (tmp_path / "file.txt").write_text("mine")
    assert "config.json" in error("gqa", checkpoint=data_root)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert "was not made by this command" in error("gqa")
    shutil.rmtree(tmp_path / "out")
    shutil.copy(data_root / "mme" / "llava_mme.jsonl", data_root / "gqa" / "llava_gqa_testdev_balanced.jsonl")
    assert str(data_root / "gqa") in error("gqa")
    (data_root / "pope" / "coco" / "coco_pope_random.json").unlink()
    assert "coco" in error("pope")
    assert not (tmp_path / "out").exists()
    for words in (
        ["eval", brief_model],
        ["eval"],
        ["eval", brief_model, "--benchmark", "gqa,vqa", "--data", data_root],
    ):
        assert alignkd_here(*words).returncode == 2


@pytest.mark.parametrize("content", ['{"data": [], "teacher": {}}', "[1", "{}"])
def test_a_folder_of_another_command_is_refused_also_with_force(evaluated: Run, content: str, tmp_path: Path) -> None:
    """The output of a training run has a `run.json`, too."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(content)
    for options in ((), ("--force",)):
        assert "was not made by this command" in one_line_error(evaluated("gqa", "--limit", 1, *options))
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("run.json", content)]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_score_of_another_benchmark(content: str, evaluated: Run, tmp_path: Path) -> None:
    assert evaluated("gqa, pope, gqa", "--limit", 1).returncode == 0
    score = tmp_path / "out" / "gqa" / "score.json"
    whole = json.loads(score.read_text())
    score.write_text(content)
    assert f"{score}: not written by `alignkd eval`" in one_line_error(evaluated("pope", "--limit", 1))
    assert evaluated("gqa", "--limit", 1).returncode == 0
    assert json.loads(score.read_text()) == whole


def test_a_device_that_does_not_exist(evaluated: Run) -> None:
    assert "'nowhere:0' cannot be used" in one_line_error(evaluated("gqa", "--device", "nowhere:0"))


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ("mtgv/MobileVLM_V2-1.7B", "MobileVLM_V2-1.7B"),
        ("/models/student/", "student"),
        ("runs/a/checkpoint-500", "a_checkpoint-500"),
        ("checkpoint-500", "checkpoint-500"),
    ],
)
def test_the_models_name_is_the_originals(checkpoint: str, name: str) -> None:
    assert model_name(checkpoint) == name


def test_the_published_row_stands_beside_that_of_a_model_of_its_size(golden: Path) -> None:
    rows = published_rows(family_config("mtgv/MobileVLM_V2-1.7B"))
    assert rows and all("1.7B" in title.split() for title in rows)
    assert not any("1.7B" in title for title in published_rows(family_config("mtgv/MobileVLM_V2-7B")))
    found = {
        "headline": {}, "table_value": 60.0, "questions": 10, "answered": 10, "unreadable": [3], "limit": None,
        "seconds": 5.0, "questions_per_second": 2.0, "no_score": None,
    }  # fmt: skip
    results = {"notes": [], "average": None, "benchmarks": {"gqa": found, "mme": found | {"table_value": 1300.0}}}
    head, gqa, mme, average = result_lines(results, dict(list(TABLE_1.items())[:1]))
    title, row = next(iter(TABLE_1.items()))
    assert title in head and gqa.split() == ["GQA", "60.00", f"{row['gqa']:.2f}", *"10 of 10 1 5 s 2.00".split()]
    assert mme.split()[1:3] == ["1300.0", f"{row['mme']:.1f}"]
    assert average.split() == ["average", "-", f"{table1_average(row):.2f}"]


def test_a_model_of_transformers_says_that_its_number_is_not_the_papers(
    evaluated: Run, data_root: Path, tmp_path: Path
) -> None:
    import tiny_families

    checkpoint = tiny_families.build("smolvlm", tmp_path / "smolvlm")
    # the tiny golden pictures are smaller than a patch
    Image.new("RGB", (40, 30), "red").save(data_root / "gqa" / "images" / "n001.jpg")
    done = evaluated("gqa", "--limit", 1, checkpoint=checkpoint)
    assert done.returncode == 0, done.stderr
    assert "not comparable with its Table 1" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["family"], results["prompts"]) == ("huggingface", "chat template")
