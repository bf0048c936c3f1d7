"""Weights that do not fit, are damaged or are not finite are refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.checkpoint import HuggingFaceCheckpoint
from alignkd.vlm.families.huggingface.model.recorder import implementation_of
from alignkd.vlm.families.huggingface.model.weights.loading import build_model

Change = Callable[[dict[str, torch.Tensor]], None]
KEY = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def copied(cases: dict[str, Any], tmp_path: Path) -> Any:
    """A copy of Qwen2.5-VL's checkpoint, whose files have the hub's names (`visual.*`, `model.layers.*`)."""
    shutil.copytree(cases["qwen2_5_vl"].folder, tmp_path / "copy")
    return cases["qwen2_5_vl"]


def load(case: Any, folder: Path, **options: Any) -> Any:
    examples = [sample.example for sample in case.samples]
    settings = {"dtype": torch.float32, "device": "cpu", "quantization": "none", **options}
    return build_model(folder, HuggingFaceCheckpoint(folder, folder).config, examples, **settings)


def changed(folder: Path, change: Change) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def refused(case: Any, folder: Path, reason: str, **options: Any) -> None:
    with pytest.raises(InputError, match=reason) as error:
        load(case, folder, **options)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda weights: weights.pop(KEY), r"missing model\.language_model\.layers\.1\.mlp\.up_proj\.weight"),
        (lambda weights: weights.update({"extra.weight": torch.zeros(2)}), r"unknown .*extra\.weight"),
        (
            lambda weights: weights.update({KEY: weights[KEY][:4].clone()}),
            r"up_proj\.weight has shape \(4, 32\), expected \(64, 32\)",
        ),
        (
            lambda weights: [weights.pop(key) for key in list(weights) if "up_proj" in key],
            r"missing .*layers\.\{0-1\}\.mlp\.up_proj\.weight",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "many"],
)
def test_weights_that_do_not_fit(copied: Any, tmp_path: Path, change: Change, reason: str) -> None:
    changed(tmp_path / "copy", change)
    refused(copied, tmp_path / "copy", f"weights do not fit config.json: .*{reason}")


def test_weights_that_are_not_finite(copied: Any, tmp_path: Path) -> None:
    changed(tmp_path / "copy", lambda weights: weights[KEY].view(-1)[3:5].fill_(torch.nan))
    refused(copied, tmp_path / "copy", rf"model\.safetensors: {KEY} holds 2 of 2048 values that are NaN or infinite")


def test_weights_too_large_for_float16(copied: Any, tmp_path: Path) -> None:
    changed(tmp_path / "copy", lambda weights: weights[KEY].view(-1)[:1].fill_(1e6))
    refused(copied, tmp_path / "copy", r"up_proj\.weight does not fit torch\.float16", dtype=torch.float16)


def test_a_damaged_file(copied: Any, tmp_path: Path) -> None:
    file = tmp_path / "copy/model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    refused(copied, tmp_path / "copy", "model.safetensors: damaged weight file")
    file.unlink()
    refused(copied, tmp_path / "copy", "no model.safetensors or pytorch_model.bin")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_a_device_that_is_not_there(copied: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="device 'cuda' cannot be used"):
        load(copied, tmp_path / "copy", device="cuda")


def test_the_attention_function_of_config_json_is_not_used(copied: Any, tmp_path: Path) -> None:
    file = tmp_path / "copy/config.json"
    raw = json.loads(file.read_text())
    raw["attn_implementation"] = raw["_attn_implementation"] = "flash_attention_2"
    file.write_text(json.dumps(raw))
    assert implementation_of(load(copied, tmp_path / "copy").first_attention) == "sdpa"


def test_what_sdpa_cannot_compute_is_eager(cases: dict[str, Any]) -> None:
    assert implementation_of(cases["paligemma2"].model.first_attention) == "eager"
    assert implementation_of(cases["paligemma"].model.first_attention) == "sdpa"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not a vision-language model of transformers"),
        ({"model_type": "blip"}, "model_type 'blip' has no "),
        ({"model_type": "no_such_model"}, "not a configuration that transformers can read"),
        ({}, "not a configuration that transformers can read"),
    ],
)
def test_models_of_other_kinds(tmp_path: Path, raw: dict[str, Any], reason: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=reason) as error:
        _ = HuggingFaceCheckpoint(tmp_path, tmp_path).config
    assert str(tmp_path / "config.json") in str(error.value) and "\n" not in str(error.value)


def test_the_fingerprint_follows_every_byte(copied: Any, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    fingerprint = HuggingFaceCheckpoint(folder, folder).fingerprint
    assert fingerprint == copied.checkpoint.fingerprint and len(fingerprint) == 64
    changed(folder, lambda weights: weights[KEY].view(-1)[:1].add_(1e-3))
    other = HuggingFaceCheckpoint(folder, folder).fingerprint
    assert other != fingerprint
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert HuggingFaceCheckpoint(folder, folder).fingerprint not in (fingerprint, other)


def test_a_model_does_not_depend_on_its_file_afterwards(copied: Any, tmp_path: Path) -> None:
    model = load(copied, tmp_path / "copy")
    before = model.head.weight_VD.clone()
    file = tmp_path / "copy/model.safetensors"
    with file.open("r+b") as stream:
        stream.seek(0)
        stream.write(bytes(file.stat().st_size))
    assert torch.equal(model.head.weight_VD, before)
