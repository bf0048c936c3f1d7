"""`alignkd models` on checkpoints of several families: sizes, inputs, self-checks and pairs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from alignkd.pipeline.cli import main
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.open import open_checkpoint

FAMILIES = ("qwen3_vl", "gemma3", "smolvlm")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["models", *map(str, arguments)])


def shown(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    return found[0] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny_families.build(name, root / name) for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_and_inputs_are_those_of_the_model(name: str, folders: dict[str, Path]) -> None:
    folder = folders[name]
    found = shown(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    counts = found["parameters"]
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["total"] == counts["language_model"] + counts["vision_tower"] + counts["projector"]
    assert min(counts.values()) > 0 and found["weight_bytes"]["bfloat16"] == 2 * counts["total"]
    assert found["self_checks"]["state"] == "passed" and len(found["self_checks"]["lines"]) >= 4

    tokens = found["inputs"]["tokens_of_image"]["640 x 480"]
    preparation = open_checkpoint(folder).preparation()
    turns = [Turn("human", "<image>\nwhat?"), Turn("gpt", "that")]
    assert preparation.tokenize(turns, [(640, 480)]).positions.tokens_of_image == (tokens,)
    stored = found["inputs"]["stored"]["640 x 480"]
    # exact: 2 bytes for each value of the vision embeddings, and attention in addition
    assert stored["exact"] > 2 * tokens * found["hidden_size"] and stored["compact"] < stored["exact"]


def test_a_broken_model_fails_and_unread_weights_are_not_checked(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folders["qwen3_vl"], broken)
    weights = load_file(broken / "model.safetensors")
    name = next(key for key in weights if key.endswith("norm.weight"))
    save_file(
        weights | {name: torch.full_like(weights[name], torch.nan)}, broken / "model.safetensors", {"format": "pt"}
    )
    failed = run(broken)
    assert failed.exit_code == 1 and "self-checks       failed" in failed.stdout and name in failed.stdout
    assert run(broken, "--no-check").exit_code == 0
    (broken / "model.safetensors").unlink()
    unread = run(broken)
    assert unread.exit_code == 0 and "not run" in unread.stdout and "not on this machine" in unread.stdout


def test_a_checkpoint_of_no_family_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    failed = run(tmp_path)
    assert failed.exit_code == 1 and failed.stderr.count("\n") == 1
    assert "'bert'" in failed.stderr and str(tmp_path) in failed.stderr


def test_a_pair_of_one_family_allows_all_losses(folders: dict[str, Path], tmp_path: Path) -> None:
    student = tiny_families.build("qwen3_vl", tmp_path / "student", hidden_size=64, vocab_size=480)
    found = shown("--pair", folders["qwen3_vl"], student)
    different = [item["name"] for item in found["compared"] if not item["equal"]]
    assert different == ["columns of the head"] and set(found["losses"]) >= {"attention", "logit", "vision_all"}
    assert found["columns"] == open_checkpoint(student).preparation().num_tokens
    assert run("--pair", folders["qwen3_vl"], student).stdout.splitlines()[-1] == "all losses"


@pytest.mark.parametrize("same", [True, False])
def test_a_shared_tower_allows_the_stem(same: bool, tmp_path: Path) -> None:
    teacher = tiny_families.build("gemma3", tmp_path / "teacher", seed=1, tower_seed=5)
    student = tiny_families.build("gemma3", tmp_path / "student", seed=2, tower_seed=5 if same else 6)
    found = shown("--pair", teacher, student)
    assert found["stem"] is same and ("share their vision tower" in found["stem_reason"]) is same


def test_a_model_without_a_stem_is_named(folders: dict[str, Path]) -> None:
    found = shown("--pair", folders["qwen3_vl"], folders["qwen3_vl"])
    assert found["stem"] is False and "store the targets" in found["stem_reason"]


def test_other_image_tokens_leave_the_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(folders["smolvlm"], student)
    path = next(file for file in student.glob("*processor_config.json") if "do_resize" in file.read_text())
    settings = json.loads(path.read_text())
    (settings.get("image_processor") or settings)["do_image_splitting"] = False
    path.write_text(json.dumps(settings))
    found = shown("--pair", folders["smolvlm"], student)
    assert set(found["losses"]) == {"supervised", "logit", "nd", "preference"} and "losses only" in found["verdict"]


def test_a_pair_of_two_families_does_not_fit(folders: dict[str, Path]) -> None:
    result = run("--pair", folders["qwen3_vl"], folders["gemma3"])
    assert result.exit_code == 1 and "the pair does not fit: tokenizer" in result.stdout.splitlines()[-1]


def test_a_checkpoint_beside_a_pair_is_a_usage_error(folders: dict[str, Path]) -> None:
    result = run(folders["gemma3"], "--pair", folders["gemma3"], folders["gemma3"])
    assert result.exit_code == 2 and "leave it out" in result.stderr
