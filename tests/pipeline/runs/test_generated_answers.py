"""Answers that a model wrote, from the files of `alignkd generate` through both phases; questions without an answer."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import generated_folder
import pytest
import torch
from torch.nn import functional

from alignkd.storage import StoreReader
from alignkd.vlm.data.entries.answers.missing import UNANSWERED
from alignkd.vlm.data.turns import turns_of
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model, load_preparation
from alignkd.vlm.inputs.batch import collate_sequences

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]

HOW = {"by": "golden-teacher", "logprob": -3.25, "tokens": 5, "finished": True}


@pytest.fixture
def generated(golden: Path, tmp_path: Path) -> Path:
    """The golden samples as `alignkd generate` writes them: the last answer of each is the teacher's."""
    entries = json.loads((golden / "v1.json").read_text())
    for entry in entries:
        entry["conversations"][-1]["generated"] = HOW
    assert any(len(entry["conversations"]) > 2 for entry in entries)
    return generated_folder.write(tmp_path / "generated", [entries[:2], entries[2:]])


def supervised_by_hand(store: Path, golden: Path, factor: float) -> float:
    """Mean of factor times cross-entropy over all samples of a store, one sample at a time, without padding.

    The labels of the last answer of a conversation are those that the conversation without it lacks.
    """
    preparation = load_preparation(golden / "student", template="v1", vision_config=golden / "clip")
    student = load_model(golden / "student", vision_config=golden / "clip")
    values: list[float] = []
    for record in StoreReader(store):
        turns = turns_of(record.conversations)
        files = [(golden.parent / "images" / image).read_bytes() for image in record.images]
        example = preparation.build(turns, files)
        batch = collate_sequences([example])
        with torch.no_grad():
            vision = student.encode_images(batch.images) if batch.images else None
            hidden = student.hidden_states(batch, vision)[0, example.positions.supervised_positions]
            logprobs = functional.log_softmax(student.lm_head(hidden).double(), -1)
        labels = batch.supervised_labels_N.tolist()
        before = len(preparation.build(turns[:-2], files).positions.supervised_positions) if len(turns) > 2 else 0
        factors = [1.0] * before + [factor] * (len(labels) - before)
        values += [-factors[n] * float(logprobs[n, label]) for n, label in enumerate(labels)]
    return sum(values) / len(values)


def test_dump_and_training_with_a_factor(
    generated: Path, write_config: WriteConfig, golden: Path, tmp_path: Path, alignkd_here: Alignkd
) -> None:
    data = {"conversations": str(generated)}
    dumped = alignkd_here("dump", write_config(data=data))
    assert dumped.returncode == 0, dumped.stdout + dumped.stderr
    store = tmp_path / "store"
    for record in StoreReader(store):
        marks = [turn.get("generated") for turn in record.conversations]
        assert marks == [None] * (len(marks) - 1) + [True]
    found = {}
    for factor in (0.0, 0.5, 1.0):
        output = tmp_path / f"out-{factor}"
        train = {"output": str(output), "steps": 1, "micro_batch": 2, "global_batch": 4}
        config = write_config(data=data, train=train | {"losses": {"supervised_on_generated": factor}})
        trained = alignkd_here("train", config)
        assert trained.returncode == 0, trained.stdout + trained.stderr
        (line,) = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
        found[factor] = line["supervised"]
        assert line["supervised"] == pytest.approx(supervised_by_hand(store, golden, factor), rel=1e-5)
    assert found[0.0] < found[0.5] < found[1.0]
    assert found[0.5] == pytest.approx((found[0.0] + found[1.0]) / 2, rel=1e-6)


def test_stores_keep_the_mark(
    generated: Path, write_config: WriteConfig, tmp_path: Path, alignkd_here: Alignkd
) -> None:
    store, tars, plain, both = (tmp_path / name for name in ("store", "tars", "plain", "both"))
    for command in (
        ("dump", write_config(data={"conversations": str(generated)})),
        ("dump", write_config(name="plain.yaml", store={"path": str(plain)})),
        ("shards", "convert", store, tars, "--backend", "webdataset"),
        ("shards", "merge", store, plain, both),
    ):
        done = alignkd_here(*command)
        assert done.returncode == 0, done.stderr
    marks = [any(turn.get("generated") for turn in record.conversations) for record in StoreReader(both)]
    assert sorted(marks) == [False] * len(StoreReader(plain)) + [True] * len(StoreReader(store))
    assert alignkd_here("shards", "diff", store, tars).returncode == 0
    expected = [record.conversations for record in StoreReader(store)]
    assert [record.conversations for record in StoreReader(tars)] == expected
    assert '"generated": true' in json.dumps(expected)
    shown = json.loads(alignkd_here("shards", "show", store, "--index", 0, "--json").stdout)
    assert shown["conversations"][-1]["generated"] is True
    assert alignkd_here("shards", "verify", tars).returncode == 0


def test_a_plain_store_differs_only_in_keys_and_marks(
    generated: Path, write_config: WriteConfig, tmp_path: Path, alignkd_here: Alignkd
) -> None:
    """The mark belongs to the sample's key, and changes no target."""
    stores = {}
    for name, data in (("plain", {}), ("marked", {"conversations": str(generated)})):
        assert alignkd_here("dump", write_config(data=data, store={"path": str(tmp_path / name)})).returncode == 0
        stores[name] = {record.id: record for record in StoreReader(tmp_path / name)}
    for name, marked in stores["marked"].items():
        plain = stores["plain"][name]
        assert marked.key != plain.key
        assert marked.input_ids.tolist() == plain.input_ids.tolist() and marked.labels.tolist() == plain.labels.tolist()
        assert (marked.logits == plain.logits).all()
        assert [turn["value"] for turn in marked.conversations] == [turn["value"] for turn in plain.conversations]


@pytest.fixture
def questions(golden: Path, tmp_path: Path) -> Path:
    """The golden samples, of which the first and the last lack their last answer."""
    entries = json.loads((golden / "v1.json").read_text())
    for entry in (entries[0], entries[-1]):
        del entry["conversations"][-1]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(entries))
    return path


def test_a_dump_lists_questions_without_an_answer(
    questions: Path, write_config: WriteConfig, tmp_path: Path, alignkd_here: Alignkd
) -> None:
    config = write_config(data={"conversations": str(questions), "answers": "missing"}, store={"max_errors": 2})
    dumped = alignkd_here("dump", config)
    assert dumped.returncode == 0, dumped.stdout + dumped.stderr
    assert UNANSWERED in dumped.stdout + dumped.stderr
    assert len(StoreReader(tmp_path / "store")) == 2
    validated = write_config(
        name="validated.yaml",
        data={"conversations": str(questions), "answers": "missing"},
        train={"validation": {"data": {"conversations": str(questions)}}},
    )
    trained = alignkd_here("train", validated)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "or set data.answers to missing" in trained.stdout + trained.stderr
