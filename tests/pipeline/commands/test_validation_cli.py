"""Validation as users see it: `alignkd train` with a section `validation`, its lines, its JSON, `alignkd report`."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from alignkd.storage import StoreReader

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]


def test_train_and_report(alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path) -> None:
    assert alignkd_here("dump", write_config()).returncode == 0
    share = sorted(int(key[:16], 16) / 2**64 for key in StoreReader(tmp_path / "store").keys)[1] - 1e-9
    train = {"steps": None, "epochs": 2, "micro_batch": 1, "preset": "supervised", "learning_rate": 1e-3}
    held_out = write_config(train=train | {"validation": {"share": share, "every": 3}})
    done = alignkd_here("train", held_out)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "validation.jsonl").read_text().splitlines()]
    assert [(line["step"], line["samples"]) for line in lines] == [(0, 1), (3, 1), (6, 1)]
    assert "6 steps of 1 samples: 6 samples, 2 passes over 3 (train.epochs 2)" in done.stderr
    assert f"validation: 1 sample held out of training (share {share:g}), every 3 steps" in done.stderr
    assert f"validation at step 3: loss {lines[1]['loss']:.4f}" in done.stderr
    best = min(lines[1:], key=lambda line: line["loss"])
    assert f"student of step {best['step']} (validation loss {best['loss']:.4g}" in done.stdout
    again = json.loads(alignkd_here("train", held_out, "--json").stdout)
    assert again["already_finished"] and again["validation"]["exported_step"] == best["step"]
    assert again["validation"]["best"] == best["loss"] and again["validation"]["stopped_early"] is None

    data = {"data": {"conversations": str(golden / "v1.json")}, "max_samples": 3}
    raw = write_config(train=train | {"epochs": 1, "output": str(tmp_path / "raw"), "validation": data})
    done = alignkd_here("train", raw)
    assert done.returncode == 0, done.stderr
    assert f"validation: 3 of 4 samples of {golden / 'v1.json'}, terms without a teacher: supervised" in done.stderr
    (first, *_) = (json.loads(line) for line in (tmp_path / "raw" / "validation.jsonl").read_text().splitlines())
    assert (first["step"], first["samples"], first["unusable"]) == (0, 3, 0)

    shown = alignkd_here("report", tmp_path / "out", tmp_path / "raw")
    assert "best validation at step" in shown.stdout and "validation supervised" in shown.stdout


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"shar": 0.1}, "train.validation.shar: unknown key (did you mean 'share'?)"),
        ({"share": 0.1, "data": {"conversation": "c"}}, "train.validation.data.conversation: unknown key"),
        ({"patience": 2}, "train.validation: give exactly one of share, store and data, found none"),
        ({"store": "STORE"}, "train.validation.store"),
    ],
)
def test_a_section_that_cannot_be_is_one_line(
    section: dict[str, object], named: str, alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    if "store" in section:  # the output lies in it
        section = {"store": str(tmp_path / "other")}
        train = {"output": str(tmp_path / "other" / "out"), "validation": section}
    else:
        train = {"validation": section}
    done = alignkd_here("train", write_config(train=train))
    assert done.returncode == 1 and named in done.stderr and done.stderr.count("\n") == 1


def test_run_refuses_missing_conversations_before_the_teacher_runs(
    alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    section = {"data": {"conversations": str(tmp_path / "missing.json")}}
    done = alignkd_here("run", write_config(train={"validation": section}))
    assert done.returncode == 1 and "missing.json" in done.stderr and not (tmp_path / "store").exists()
