"""`alignkd generate`, then the dump and two steps of training over its answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_data
import tiny_families
import yaml
from written_answers import answers_of, entries_of

from alignkd.storage import StoreReader
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation

Alignkd = Callable[..., Any]
WriteConfig = Callable[..., Path]
SHORT = {"steps": 2, "micro_batch": 2, "global_batch": 2, "data_workers": 0, "report_to": "none"}
SMALL_STORE = {"attention": "none", "vision_top": "none", "vision_all": "none", "logits": {"kind": "topk", "top_k": 3}}
LOGITS_ONLY = {"losses": {"attention": 0.0, "vision_top": 0.0, "vision_all": 0.0}}


def questions_of(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**e, "conversations": [turn for turn in e["conversations"] if turn["from"] == "human"]} for e in entries]


def write_yaml(path: Path, sections: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture
def config(golden: Path, golden_images: Path, tmp_path: Path) -> Path:
    """A configuration that answers the questions of the golden samples."""
    (tmp_path / "q.json").write_text(json.dumps(questions_of(json.loads((golden / "v1.json").read_text()))))
    data = {"conversations": str(tmp_path / "q.json"), "images": str(golden_images), "answers": "missing"}
    teacher = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip"), "batch": 2}
    generate = {"output": str(tmp_path / "teacher-answers"), "max_new_tokens": 5, "shard_size": 3}
    return write_yaml(tmp_path / "generate.yaml", {"data": data, "teacher": teacher, "generate": generate})


def test_generate_then_dump_then_train(
    config: Path, alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    done = alignkd_here("generate", config, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["entries"], report["shards_written"], report["shards_left"]) == (4, 2, 0)
    data = {
        "conversations": str(tmp_path / "teacher-answers" / "answers"),
        "images": report["images"],
        "template": "v1",
    }
    run = write_config(data=data, teacher={"sanity": "off"}, store=SMALL_STORE, train={**SHORT, **LOGITS_ONLY})
    for phase in ("dump", "train"):
        finished = alignkd_here(phase, run)
        assert finished.returncode == 0, finished.stderr
    reader = StoreReader(tmp_path / "store")
    assert sorted(record.id for record in reader) == [entry["id"] for entry in entries_of(tmp_path / "teacher-answers")]


def test_what_the_command_prints(config: Path, alignkd_here: Alignkd, tmp_path: Path) -> None:
    missing = alignkd_here("generate", "--status", tmp_path / "teacher-answers")
    assert missing.returncode == 1 and missing.stderr.count("\n") == 1 and "generation.json" in missing.stderr
    done = alignkd_here("generate", config)
    assert done.returncode == 0 and "wrote 2 shards: 4 entries of 4 samples with 7 answers" in done.stdout
    assert f"data: {{conversations: {tmp_path / 'teacher-answers'}, images: " in done.stdout
    assert "nothing left to do: 4 entries" in alignkd_here("generate", config).stdout
    status = alignkd_here("generate", "--status", tmp_path / "teacher-answers")
    assert status.stdout.startswith(
        f"{tmp_path / 'teacher-answers'}: complete, 100.0%\n4 of 4 entries, 2 of 2 shards, 7 answers"
    )
    (tmp_path / "teacher-answers" / "shards" / "00000000.json").unlink()
    stopped = json.loads(alignkd_here("generate", "--status", tmp_path / "teacher-answers", "--json").stdout)
    assert (stopped["state"], stopped["shards_done"], stopped["done"], stopped["planned"]) == ("stopped", 1, 1, 4)
    assert alignkd_here("generate", config, "--worker", "1/2").returncode == 0
    assert sum(len(answers_of(entry)) for entry in entries_of(tmp_path / "teacher-answers")) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generate": None}, "generate: section is empty, alignkd generate needs it"),
        ({"generate": {"max_new_tokens": 5}}, "generate.output: missing"),
        ({"generate": {"output": "x", "tokens": 5}}, "generate.tokens: unknown key"),
        ({"generate": {"output": "x", "top_p": 0.5}}, "top_p is 0.5, but sampling is 'greedy'; set sampling to sample"),
        (
            {"generate": {"output": "x", "sampling": "sample", "top_p": 0.0}},
            "generate.top_p: expected above 0, found 0",
        ),
        ({"teachers": {}}, "teachers: unknown key"),
        ({"stages": []}, "has stages"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(
    config: Path, alignkd_here: Alignkd, change: dict[str, Any], message: str
) -> None:
    write_yaml(config, yaml.safe_load(config.read_text()) | change)
    done = alignkd_here("generate", config)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert message in done.stderr and str(config) in done.stderr


def test_data_with_all_answers_get_none(config: Path, golden: Path, alignkd_here: Alignkd, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_bytes((golden / "v1.json").read_bytes())
    done = alignkd_here("generate", config)
    assert "4 entries of 4 samples with 0 answers" in done.stdout and "set generate.answers to all" in done.stdout
    assert entries_of(tmp_path / "teacher-answers") == json.loads((golden / "v1.json").read_text())


def test_sections_of_other_commands_are_not_read(config: Path, alignkd_here: Alignkd) -> None:
    write_yaml(config, yaml.safe_load(config.read_text()) | {"train": {"steps": "x"}, "store": {}})
    assert alignkd_here("generate", config).returncode == 0


def test_an_output_of_something_else_is_refused(config: Path, alignkd_here: Alignkd, tmp_path: Path) -> None:
    (tmp_path / "teacher-answers").mkdir()
    (tmp_path / "teacher-answers" / "notes.txt").write_text("mine")
    done = alignkd_here("generate", config)
    assert done.returncode == 1 and "is not empty and was not made by this command" in done.stderr
    assert [path.name for path in (tmp_path / "teacher-answers").iterdir()] == ["notes.txt"]
    assert alignkd_here("generate").returncode == alignkd_here("generate", config, "--status", "x").returncode == 2


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "gemma3"])
def test_families_of_transformers(
    family: str, alignkd_here: Alignkd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Several images and turns; answers in batches are those of batches of one, and a dump takes them."""
    # a model with random weights writes special tokens, which make no text
    monkeypatch.setattr(HuggingFacePreparation, "decode", lambda self, ids: f"the tokens {list(ids)}")
    checkpoint = tiny_families.build(family, tmp_path / "teacher", seed=3)
    given = [*tiny_data.ENTRIES[:2], *tiny_data.ENTRIES[2:8:2]]
    data = tiny_data.write(tmp_path / "data", questions_of(given))
    sections: dict[str, Any] = {
        "data": {"conversations": str(data.conversations), "images": str(data.images), "answers": "missing"},
        "generate": {"max_new_tokens": 4, "shard_size": 8},
    }
    for batch in (1, 8):
        sections["teacher"] = {"checkpoint": str(checkpoint), "batch": batch, "sanity": "off"}
        sections["generate"]["output"] = str(tmp_path / f"batch-{batch}")
        done = alignkd_here("generate", write_yaml(tmp_path / "run.yaml", sections))
        assert done.returncode == 0, done.stderr
    alone, together = (entries_of(tmp_path / f"batch-{batch}") for batch in (1, 8))
    assert list(map(answers_of, alone)) == list(map(answers_of, together))
    assert len(together) == len(given)
    images = sections["data"]["images"]
    sections["data"] = {"conversations": str(tmp_path / "batch-8"), "images": images, "max_tokens": 4096}
    sections["store"] = {"path": str(tmp_path / "store"), **SMALL_STORE}
    del sections["generate"]
    dumped = alignkd_here("dump", write_yaml(tmp_path / "run.yaml", sections), "--json")
    assert dumped.returncode == 0, dumped.stderr
    assert json.loads(dumped.stdout)["num_records"] == len(given)
