"""What a user can do wrong: one line on stderr, both values and the next step, no traceback, nothing half-written."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


def one_line_error(process: "subprocess.CompletedProcess[str]") -> str:
    assert process.returncode == 1, (process.returncode, process.stderr)
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("alignkd: "), process.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"train": {"losses": {"vision_focus": 0.1}}}, ["vision_focus: unknown key (did you mean 'vision_top'?)"]),
        ({"store": {"atention": "float32"}}, ["store.atention: unknown key (did you mean 'attention'?)"]),
        (
            {"train": {"steps": 0}, "data": {"template": "v2"}},
            ["2 problems", "train.steps", "found 0", "data.template", "'v2'"],
        ),
        ({"store": {"logits": {"kind": "full", "top_k": 3}}}, ["store.logits", "top_k 3"]),
        ({"store": {"attention": "none"}}, ["weighs attention", "set the weight to 0"]),
        ({"store": {"backend": "tape"}}, ["store.backend", "'tape'"]),
    ],
)
def test_every_problem_of_a_configuration_is_named(
    alignkd_here: Alignkd, write_config: WriteConfig, changes: dict[str, Any], parts: list[str], tmp_path: Path
) -> None:
    message = one_line_error(alignkd_here("run", write_config(**changes)))
    assert "run.yaml" in message and all(part in message for part in parts), message
    assert not (tmp_path / "store").exists() and not (tmp_path / "out").exists()


def test_missing_sections_and_files(
    alignkd_prepared: Alignkd, alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(drop=("student", "train"))
    assert "student: section is missing, alignkd train needs it" in one_line_error(alignkd_prepared("train", config))
    assert "none.yaml: cannot be read" in one_line_error(alignkd_here("dump", tmp_path / "none.yaml"))
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "contains a list" in one_line_error(alignkd_here("dump", tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1\nb: }")
    assert "broken YAML at line 2, column 2" in one_line_error(alignkd_here("dump", tmp_path / "broken.yaml"))


def test_broken_json_is_named_with_line_and_column(
    alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    data = tmp_path / "data.json"
    data.write_text('[\n {"id": 1,}\n]')
    message = one_line_error(alignkd_here("dump", write_config(data={"conversations": str(data)})))
    assert "data.json: broken JSON at line 2" in message
    assert not (tmp_path / "store").exists()


def test_unusable_samples_are_counted_and_listed(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path
) -> None:
    entries = json.loads((golden / "v1.json").read_text())
    entries[1]["image"] = "not-there.png"
    data = tmp_path / "data.json"
    data.write_text(json.dumps(entries))
    dumped = alignkd_here("dump", write_config(data={"conversations": str(data)}))
    assert dumped.returncode == 0 and "3 of 4 samples in the store, 1 unusable" in dumped.stdout
    assert "unusable: sample 'ft-1' (index 1)" in dumped.stderr and "not-there.png" in dumped.stderr
    shown = one_line_error(alignkd_here("shards", "show", tmp_path / "store", "--id", "ft-1"))
    assert "no record with --id ft-1; the sample is unusable:" in shown


def test_a_store_of_another_tokenizer_or_template_is_refused(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path
) -> None:
    assert alignkd_here("dump", write_config()).returncode == 0
    assert "template" in one_line_error(alignkd_here("train", write_config(data={"template": "plain"})))
    other = tmp_path / "student"
    shutil.copytree(golden / "student", other)
    from alignkd.pipeline.demo.world.tokenizer import TOKENIZER_MODEL

    shutil.copyfile(TOKENIZER_MODEL, other / "tokenizer.model")
    message = one_line_error(alignkd_here("train", write_config(student={"checkpoint": str(other)})))
    assert "tokenizer" in message and "in the store" in message
    assert not (tmp_path / "out" / "student").exists()


def test_no_store_and_ambiguous_records(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path
) -> None:
    assert "none" in one_line_error(alignkd_here("shards", "ls", tmp_path / "none"))
    entries = json.loads((golden / "v1.json").read_text())
    for entry in entries:
        entry["id"] = "same"
    data = tmp_path / "data.json"
    data.write_text(json.dumps(entries))
    assert alignkd_here("dump", write_config(data={"conversations": str(data)})).returncode == 0
    message = one_line_error(alignkd_here("shards", "show", tmp_path / "store", "--id", "same"))
    assert "4 records with --id same; choose one with --index" in message
    usage = alignkd_here("shards", "export", tmp_path / "store", "--out", tmp_path / "x.safetensors")
    assert usage.returncode == 2 and "name one record by --id" in usage.stderr
