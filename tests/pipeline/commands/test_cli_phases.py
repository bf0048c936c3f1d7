"""dump, shards, train and run as processes: golden numbers, contract of files, exit codes."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
WriteConfig = Callable[..., Path]
PLAIN = ["pt-0", "pt-1", "pt-2"]
V1 = ["ft-0", "ft-1", "ft-2", "ft-3"]


@pytest.mark.parametrize(("template", "sample_ids"), [("plain", PLAIN), ("v1", V1)])
def test_exported_targets_equal_the_original(
    alignkd_here: Alignkd,
    write_config: WriteConfig,
    golden: Path,
    tmp_path: Path,
    template: str,
    sample_ids: list[str],
) -> None:
    config = write_config(data={"conversations": str(golden / f"{template}.json"), "template": template})
    dumped = alignkd_here("dump", config, "--json")
    assert dumped.returncode == 0, dumped.stderr
    assert json.loads(dumped.stdout)["num_records"] == len(sample_ids)
    for sample_id in sample_ids:
        out = tmp_path / f"{sample_id}.safetensors"
        exported = alignkd_here("shards", "export", tmp_path / "store", "--id", sample_id, "--out", out)
        assert exported.returncode == 0, exported.stderr
        got, expected = load_file(out), load_file(golden / f"{sample_id}.safetensors")
        for name in ("input_ids", "labels", "supervised_positions"):
            np.testing.assert_array_equal(got[name], expected[name])
            assert got[name].dtype == expected[name].dtype
        np.testing.assert_allclose(got["logits"], expected["teacher.logits"], rtol=1e-4, atol=1e-5)
        if "vision_positions" not in expected:
            assert "tqv_attention" not in got and "vision_embeddings" not in got
            continue
        np.testing.assert_array_equal(got["vision_positions"], expected["vision_positions"])
        np.testing.assert_array_equal(got["tqv_query_positions"], expected["tqv_query_positions"])
        attention = expected["teacher.layer0_tqv_attention"]
        np.testing.assert_allclose(got["tqv_attention"], attention, rtol=1e-4, atol=1e-7)
        vision = expected["teacher.vision_embeddings"]
        np.testing.assert_allclose(got["vision_embeddings"], vision, rtol=1e-4, atol=1e-5)
        assert got["vision_top_index"].shape == (16,) and got["vision_top_embeddings"].shape == (16, 128)


def test_run_then_shards_then_nothing_left(
    alignkd: Alignkd, alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    config = write_config(store={"logits": {"kind": "topk", "top_k": 6}, "attention": "float16"})
    finished = alignkd("run", config, "--json")
    assert finished.returncode == 0, finished.stderr
    reports = json.loads(finished.stdout)
    assert reports["verify"]["ok"] and reports["train"]["step"] == 2 and reports["dump"]["num_records"] == 4
    store = tmp_path / "store"
    listing = json.loads(alignkd_here("shards", "ls", store, "--json").stdout)
    assert (listing["records"], listing["committed"]) == (4, 1)
    targets = {target["name"]: target for target in listing["manifest"]["targets"]}
    assert targets["logits"]["codec"]["top_k"] == 6
    shown = json.loads(alignkd_here("shards", "show", store, "--index", "1", "--json").stdout)
    assert shown["id"] == "ft-1" and shown["num_queries"] == 121 and len(shown["supervised"]) == 45
    assert all(len(row["top"]) == 5 and 0 < row["tail_mass"] < 1 for row in shown["supervised"])
    page = alignkd_here("shards", "show", store, "--id", "ft-1").stdout
    assert "What color are its eyes?" in page and "121 text queries, 45 supervised" in page
    out = tmp_path / "one.safetensors"
    assert alignkd_here("shards", "export", store, "--key", shown["key"], "--out", out).returncode == 0
    tensors = load_file(out)
    assert {"logit_ids", "logit_logprobs", "logit_offsets", "tail_logmass"} <= tensors.keys()
    assert tensors["logit_offsets"].shape == (46,) and tensors["tail_logmass"].shape == (45,)
    assert (tmp_path / "out" / "student" / "model.safetensors").is_file()
    again = alignkd_here("run", config)
    assert again.returncode == 0 and again.stdout.startswith("nothing left to do: 2 steps are done")


def test_the_teacher_can_be_deleted_between_the_phases(
    alignkd_here: Alignkd, write_config: WriteConfig, golden: Path, tmp_path: Path
) -> None:
    shutil.copytree(golden / "teacher", tmp_path / "teacher")
    config = write_config(teacher={"checkpoint": str(tmp_path / "teacher")})
    assert alignkd_here("dump", config).returncode == 0
    shutil.rmtree(tmp_path / "teacher")
    trained = alignkd_here("train", config)
    assert trained.returncode == 0, trained.stderr
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    terms = {"step", "loss", "supervised", "attention", "vision_top", "vision_all", "logit", "samples_seen"}
    assert len(lines) == 2 and all(terms <= json.loads(line).keys() for line in lines)


def test_damage_is_named_and_the_exit_code_says_so(
    alignkd: Alignkd, alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path
) -> None:
    assert alignkd_here("dump", write_config()).returncode == 0
    store = tmp_path / "store"
    victim = max((store / "shards").rglob("c*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    data = bytearray(victim.read_bytes())
    data[len(data) // 3] ^= 1
    victim.write_bytes(data)
    checked = alignkd("shards", "verify", store)
    assert checked.returncode == 1 and len(checked.stderr.splitlines()) == 1 and "crc32c is" in checked.stderr
    assert str(victim) in checked.stderr
    assert alignkd_here("shards", "verify", store, "--quick").returncode == 0  # sizes are right: only reading finds it
    report = json.loads(alignkd_here("shards", "verify", store, "--json").stdout)
    assert not report["ok"] and report["problems"]


def test_shards_start_without_torch() -> None:
    names = "alignkd.pipeline.cli, alignkd.pipeline.commands.shards"
    code = f"import sys, {names}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "False"]
