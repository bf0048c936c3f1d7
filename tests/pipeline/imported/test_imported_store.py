"""What users do with a store of imported targets: look at it, copy it, train from it."""

import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
import tiny_families
import yaml
from foreign_worlds import assert_equals_dump, scored_samples
from safetensors.numpy import load_file

from alignkd.storage import StoreReader
from alignkd.student_train import trainer
from alignkd.target_dataset import TargetDataset

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
MakeWorld = Callable[..., Any]
K = 16
FAMILY = "qwen3_vl"


def ran(alignkd: Alignkd, *arguments: Any) -> str:
    done = alignkd(*arguments)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def unknown(golden_world: Any, tmp_path_factory: pytest.TempPathFactory, alignkd_here: Alignkd) -> Path:
    """A store whose tail is unknown."""
    folder = tmp_path_factory.mktemp("unknown")
    file = foreign_files.write_axolotl(folder / "kd.jsonl", golden_world.samples, K, shift=1)
    ran(alignkd_here, "shards", "import", file, *golden_world.options, "--out", folder / "store", "--alignment", "next")
    return folder / "store"


@pytest.fixture(scope="module")
def known(golden_world: Any, tmp_path_factory: pytest.TempPathFactory, alignkd_here: Alignkd) -> Path:
    """A store whose tail is known."""
    folder = tmp_path_factory.mktemp("known")
    file = foreign_files.write_vllm(folder / "scored.json", golden_world.samples, K)
    ran(alignkd_here, "shards", "import", file, *golden_world.options, "--out", folder / "store")
    return folder / "store"


def test_every_command_on_stores(alignkd_here: Alignkd, unknown: Path, tmp_path: Path) -> None:
    listed = json.loads(ran(alignkd_here, "shards", "ls", unknown, "--json"))
    assert (
        "axolotl" in json.dumps(listed["manifest"]["fingerprint"])
        and "weights" not in listed["manifest"]["fingerprint"]
    )
    shown = ran(alignkd_here, "shards", "show", unknown, "--id", "ft-1")
    assert "tail unknown" in shown
    rows = json.loads(ran(alignkd_here, "shards", "show", unknown, "--id", "ft-1", "--json"))["supervised"]
    assert all(row["tail_mass"] is None and len(row["top"]) == 5 for row in rows)
    ran(alignkd_here, "shards", "stats", unknown)
    out = tmp_path / "one.safetensors"
    ran(alignkd_here, "shards", "export", unknown, "--id", "ft-1", "--out", out)
    exported = load_file(out)
    assert "tail_logmass" not in exported and exported["logit_ids"].shape == exported["logit_logprobs"].shape
    ran(alignkd_here, "shards", "export", unknown, "--id", "ft-1", "--out", out, "--raw", "--force")
    ran(alignkd_here, "shards", "verify", unknown)
    ran(alignkd_here, "shards", "convert", unknown, tmp_path / "tar", "--backend", "webdataset")
    ran(alignkd_here, "shards", "convert", tmp_path / "tar", tmp_path / "zarr", "--backend", "zarr")
    ran(alignkd_here, "shards", "diff", unknown, tmp_path / "zarr")
    ran(alignkd_here, "shards", "verify", tmp_path / "tar")
    sample = TargetDataset(unknown)[0]
    assert "tail_logmass" not in sample and "entry_logprobs" in sample


def test_deep_verification_of_a_teacher_that_knows(alignkd_here: Alignkd, golden_world: Any, tmp_path: Path) -> None:
    """Labels that a file lacks are no error there, and a shift is found; the import is told not to look."""
    sure, shifted = [], []
    for sample in golden_world.samples:
        logprobs = np.full_like(sample.logprobs, -20.0)
        for place, token in enumerate(sample.tokens[1:]):
            logprobs[place, token] = -0.01
            logprobs[place, (token + np.arange(1, 9)) % logprobs.shape[1]] = -6.0
        logprobs -= np.log(np.exp(logprobs).sum(1, keepdims=True))
        lacking = logprobs.copy()
        lacking[sample.first_label - 1, sample.tokens[sample.first_label]] = -19.0
        sure.append(replace(sample, logprobs=lacking))
        shifted.append(replace(sample, logprobs=np.roll(logprobs, -1, axis=0)))
    for name, samples in (("sure", sure), ("shifted", shifted)):
        file = foreign_files.write_axolotl(tmp_path / f"{name}.jsonl", samples, 4, shift=0)
        ran(
            alignkd_here,
            *("shards", "import", file, *golden_world.options, "--out", tmp_path / name, "--alignment", "token"),
        )
    deep = json.loads(ran(alignkd_here, "shards", "verify", tmp_path / "sure", "--deep", "--json"))
    assert deep["labels"]["labels_not_kept"] == 4 and deep["ok"], deep
    done = alignkd_here("shards", "verify", tmp_path / "shifted", "--deep")
    assert done.returncode == 1 and "logits are shifted by one" in done.stderr, (done.stdout, done.stderr)


def test_imports_of_one_tool_are_merged(
    alignkd_here: Alignkd, golden_world: Any, known: Path, unknown: Path, tmp_path: Path
) -> None:
    """Of other data by the same checkpoint; an unknown tail and a known one do not go together."""
    entries = json.loads(golden_world.data.read_text())
    more = [
        {**entry, "conversations": entry["conversations"][:2]} for entry in entries if len(entry["conversations"]) > 2
    ]
    data = tmp_path / "more.json"
    data.write_text(json.dumps(more))
    at = golden_world.options.index(str(golden_world.data))
    options = [*golden_world.options[:at], str(data), *golden_world.options[at + 1 :]]
    config = tmp_path / "dump.yaml"
    config.write_text(
        yaml.safe_dump({
            "data": {"conversations": str(data), "images": str(golden_world.images), "template": "v1"},
            "teacher": {"checkpoint": options[options.index("--checkpoint") + 1], "sanity": "off",
                        "vision_config": options[options.index("--vision-config") + 1]},
            "store": {"path": str(tmp_path / "full"), "attention": "none", "vision_top": "none", "vision_all": "none",
                      "logits": {"kind": "full"}},
        })
    )  # fmt: skip
    ran(alignkd_here, "dump", config)
    file = foreign_files.write_axolotl(tmp_path / "kd.jsonl", scored_samples(tmp_path / "full"), K, shift=1)
    ran(alignkd_here, "shards", "import", file, *options, "--out", tmp_path / "more", "--alignment", "next")
    ran(alignkd_here, "shards", "merge", unknown, tmp_path / "more", tmp_path / "all")
    assert len(StoreReader(tmp_path / "all")) == len(StoreReader(unknown)) + len(more)
    ran(alignkd_here, "shards", "verify", tmp_path / "all")
    done = alignkd_here("shards", "merge", known, tmp_path / "more", tmp_path / "none")
    assert done.returncode == 1 and "\n" not in done.stderr.strip()


def train_config(folder: Path, store: Path, student: dict[str, Any], **train: Any) -> Path:
    path = folder / f"{train['output'].name}.yaml"
    losses = {"supervised": 0.0, "logit": 1.0, "attention": 0.0, "vision_all": 0.0, "vision_top": 0.0}
    losses |= train.pop("losses", {})
    settings = {"micro_batch": 4, "learning_rate": 3e-3, "losses": losses, **train, "output": str(train["output"])}
    data = {"images": student.pop("images"), "template": student.pop("template", None)}
    data = {name: value for name, value in data.items() if value is not None}
    sections = {"data": {"conversations": "unused.json", **data}, "student": student, "store": {"path": str(store)}}
    path.write_text(yaml.safe_dump({**sections, "train": settings}))
    return path


def losses_of(output: Path) -> list[float]:
    """The logit loss of every step."""
    return [json.loads(line)["logit"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def learns(losses: list[float]) -> bool:
    return losses[-1] < 0.8 * losses[0]


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process Ctrl-C while it does optimiser step `step`, once."""
    original, calls = trainer._optimiser_step, [0]

    def interrupted(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == step:
            signal.raise_signal(signal.SIGINT)
        return original(*args)

    monkeypatch.setattr(trainer, "_optimiser_step", interrupted)


def test_mobilevlm_learns_from_it_and_resumes_exactly(
    alignkd_here: Alignkd,
    golden: Path,
    golden_images: Path,
    unknown: Path,
    known: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def config(name: str, store: Path, steps: int = 12, **losses: Any) -> Path:
        model = {"checkpoint": str(golden / "student"), "vision_config": str(golden / "clip"), "dtype": "float32"}
        student = {**model, "images": str(golden_images), "template": "v1"}
        return train_config(tmp_path, store, student, steps=steps, output=tmp_path / name, losses=losses)

    support = {"logit_divergence": "support_forward_kl"}
    ran(alignkd_here, "train", config("whole", unknown, **support))
    losses = losses_of(tmp_path / "whole")
    assert learns(losses), losses

    broken = config("broken", unknown, **support)
    interrupt_at(5, monkeypatch)
    done = alignkd_here("train", broken)
    assert done.returncode == 130, (done.stdout, done.stderr)
    ran(alignkd_here, "train", broken)
    assert losses_of(tmp_path / "broken") == losses
    weights = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "broken")]
    assert weights[0] == weights[1]

    done = alignkd_here("train", config("refused", unknown))
    assert done.returncode == 1 and "support_reverse_kl, support_forward_kl, support_js" in done.stderr
    ran(alignkd_here, "train", config("bucket", known))
    assert learns(losses_of(tmp_path / "bucket"))


def test_a_family_of_transformers(alignkd_here: Alignkd, family_world: Any, tmp_path: Path) -> None:
    """Equal to a dump; rows of samples with images are found by their tokens; a student learns."""
    options = [*family_world.options, "--dtype", "float32", "--out"]
    file = foreign_files.write_vllm(tmp_path / "scored.jsonl", family_world.samples, 12)
    ran(alignkd_here, "shards", "import", file, *options, tmp_path / "vllm", "--top-k", 12)
    assert_equals_dump(tmp_path / "vllm", family_world.top_k)

    table = foreign_files.write_distillkit_plain(tmp_path / "data_0.parquet", family_world.samples, 12)
    report = json.loads(
        ran(
            alignkd_here,
            *("shards", "import", table, *options, tmp_path / "store", "--alignment", "next", "--json"),
        )
    )
    assert report["match"] == "tokens" and report["num_records"] == report["rows"] == len(family_world.samples)
    student = {"checkpoint": str(tiny_families.build(FAMILY, tmp_path / "student", seed=2)), "dtype": "float32"}
    config = train_config(
        tmp_path,
        tmp_path / "store",
        {**student, "images": str(family_world.images)},
        steps=12,
        output=tmp_path / "out",
        losses={"logit_divergence": "support_js"},
    )
    ran(alignkd_here, "train", config)
    assert learns(losses_of(tmp_path / "out")), losses_of(tmp_path / "out")
