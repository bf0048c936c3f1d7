"""`alignkd data show`, `stats` and `convert`: answers that a model wrote, and questions without an answer."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import data_formats
import generated_folder
import pytest

from alignkd.pipeline.data.stats.scan import TEXT_ONLY
from alignkd.vlm.data.entries.answers.missing import UNANSWERED
from alignkd.vlm.data.open import load_samples, open_data
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turns import Generated, Turn

Run = Callable[..., "CompletedProcess[str]"]


def human(text: str) -> dict[str, Any]:
    return {"from": "human", "value": text}


def gpt(text: str, **how: Any) -> dict[str, Any]:
    return {"from": "gpt", "value": text} | ({"generated": how} if how else {})


ENTRIES: list[dict[str, Any]] = [
    {"id": "a", "conversations": [human("q"), gpt("a cat", by="big", logprob=-1.5, tokens=3, finished=True)]},
    {"id": "b", "conversations": [human("q"), gpt("a"), human("r"), gpt("dog", by="big", logprob=-2.5, tokens=5)]},
    {"id": "c", "conversations": [human("q"), gpt("yes", by="small", finished=False)]},
    {"id": "d", "conversations": [human("q"), gpt("no")]},
    {"id": "e", "conversations": [human("q"), human("r"), gpt("no"), human("s")]},
    {"id": "f", "conversations": [human("what is it?")]},
    {"id": "g", "image": "coffee.png", "conversations": [human("<image>\nwhat is it?")]},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in ENTRIES))
    return path


@pytest.fixture
def model(golden: Path) -> tuple[object, ...]:
    return ("--checkpoint", golden / "teacher", "--vision-config", golden / "clip")


def test_show_prints_how_an_answer_was_written(data: Path, model: tuple[object, ...], alignkd_here: Run) -> None:
    shown = alignkd_here("data", "show", data, "--id", "a", *model).stdout
    assert "turn 1, gpt (written by big, 3 tokens, log-probability -1.5000, -0.5000 per token):" in shown
    assert "keys not read" not in shown
    assert (
        "turn 1, gpt (written by small, cut by a length limit):"
        in alignkd_here("data", "show", data, "--id", "c").stdout
    )
    assert "turn 1, gpt:" in alignkd_here("data", "show", data, "--id", "b").stdout
    turns = json.loads(alignkd_here("data", "show", data, "--id", "b", "--json").stdout)["turns"]
    assert [turn["generated"] for turn in turns[:3]] == [None] * 3
    assert turns[3]["generated"] == {"by": "big", "logprob": -2.5, "tokens": 5, "finished": None}


def test_show_of_a_question(data: Path, model: tuple[object, ...], golden_images: Path, alignkd_here: Run) -> None:
    arguments = ("data", "show", data, "--id", "g", "--images", golden_images, *model)
    given = alignkd_here(*arguments).stdout
    assert "unusable: " in given and "set data.answers to missing and run `alignkd generate`" in given
    missing = alignkd_here(*arguments, "--answers", "missing").stdout
    assert f"unusable: {UNANSWERED}" in missing and "  what is it?" in missing
    assert "image 1: coffee.png, " in missing and " pixels" in missing


def test_stats_count_answers_and_questions(
    data: Path, model: tuple[object, ...], alignkd_here: Run, tmp_path: Path
) -> None:
    listing = tmp_path / "dropped.jsonl"
    arguments = ("data", "stats", data, *model, "--workers", 1, "--answers", "missing")
    found = json.loads(alignkd_here(*arguments, "--json").stdout)
    assert found["generated"] == {
        "answers": 3,
        "by": {"big": 2, "small": 1},
        "unfinished": 1,
        "scored": 2,
        "mean_tokens": 4.0,
        "logprob_per_token": pytest.approx((-1.5 - 2.5) / (3 + 5)),
    }
    assert found["questions"] == 4 and found["keys_not_read"] == {}
    total = found["total"]
    assert (total["samples"], total["usable"], total["unanswered"], total["other"]) == (7, 4, 3, 0)
    assert found["text_reasons"] == {UNANSWERED: 3}
    by_name = {source["source"]: source for source in found["sources"]}
    assert by_name[TEXT_ONLY]["samples"] == 6 and by_name["(no folder)"]["unanswered"] == 1

    done = alignkd_here(*arguments, "--list", listing)
    assert "written by a model: 3 answers (big 2, small 1), 1 cut by a length limit" in done.stdout
    assert "log-probability of 2 answers: -0.5000 per token, 4.0 tokens on average" in done.stdout
    assert "4 questions without an answer in 3 samples, which `alignkd generate` answers" in done.stdout
    assert " unanswered " in done.stdout.splitlines()[0]
    assert [json.loads(line)["kind"] for line in listing.read_text().splitlines()] == ["unanswered"] * 3

    given = alignkd_here("data", "stats", data, *model, "--workers", 1).stdout
    assert " unanswered " not in given and "set data.answers to missing and run `alignkd generate`" in given


@pytest.mark.parametrize("to", ["llava", "messages"])
@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.parquet"])
def test_convert_keeps_both(name: str, to: str, data: Path, alignkd_here: Run, tmp_path: Path) -> None:
    source = data_formats.write(tmp_path / name, ENTRIES[:6], tmp_path)
    wanted = [sample.turns for sample in open_data(DataSet(path=data, answers="missing"))][:6]
    out = tmp_path / "out.jsonl"
    done = alignkd_here("data", "convert", source, "--answers", "missing", "--to", to, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unusable"] == {}
    found = list(open_data(DataSet(path=out, answers="missing")))
    assert [sample.turns for sample in found] == wanted
    assert [sample.unanswered for sample in found] == [False] * 4 + [True] * 2
    assert found[0].turns[1] == Turn(
        "gpt", "a cat", generated=Generated(by="big", logprob=-1.5, tokens=3, finished=True)
    )


def test_a_folder_of_generate_is_its_answers(tmp_path: Path) -> None:
    shards = [[{"id": str(number), "conversations": [human("q"), gpt("a", by="big")]}] for number in range(11)]
    folder = generated_folder.write(tmp_path / "generated", shards)
    for path in (folder, folder / "answers"):
        assert [sample.id for sample in load_samples(path)] == [str(number) for number in range(11)]


def test_unfinished_answers_are_refused(tmp_path: Path, alignkd_here: Run) -> None:
    folder = generated_folder.write(tmp_path / "generated", [ENTRIES[:1], ENTRIES[1:2]], planned=3)
    for path in (folder, folder / "answers"):
        refused = alignkd_here("data", "show", path)
        assert refused.returncode == 1 and refused.stderr.count("\n") == 1
        assert f"{folder}: `alignkd generate` has finished 2 of 3 shards; run it until" in refused.stderr
    (folder / "generation.json").write_text("{}")
    refused = alignkd_here("data", "show", folder)
    assert refused.returncode == 1 and "no numbers of samples and shards" in refused.stderr
    assert [sample.id for sample in load_samples(folder / "answers" / "*.jsonl")] == ["a", "b"]
