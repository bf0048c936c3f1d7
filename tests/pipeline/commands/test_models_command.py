"""`alignkd models`: sizes counted on built models, against the published checkpoints and against real ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from alignkd.pipeline.cli import main
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig
from alignkd.vlm.families.mobilevlm.model.sizes import MEMBERS, family_config, model_size, official_config
from alignkd.vlm.families.mobilevlm.weights.checkpoint import load_model

# Bytes of config.json, and GB of the bfloat16 weight files, as the hub shows them for each repository.
PUBLISHED = {
    "mtgv/MobileVLM_V2-1.7B": (1155, 3.35),
    "mtgv/MobileVLM_V2-3B": (1611, 6.03),
    "mtgv/MobileVLM_V2-7B": (1123, 9.98 + 4.15),
}


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(main, ["models", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_family_is_as_published() -> None:
    sizes = {size["name"]: size for size in run()}
    assert sizes.keys() == PUBLISHED.keys() == set(MEMBERS)
    for name, (config_bytes, gigabytes) in PUBLISHED.items():
        text = json.dumps(official_config(name), indent=2, sort_keys=True) + "\n"  # as transformers writes it
        assert len(text) == config_bytes
        assert sizes[name]["weight_bytes"]["bfloat16"] / 1e9 == pytest.approx(gigabytes, abs=0.006)
        assert sizes[name]["vision_tokens"] == 144 and sizes[name]["vocab_size"] == 32000
        counts = sizes[name]["parameters"]
        assert counts["total"] == counts["language_model"] + counts["vision_tower"] + counts["projector"]


def test_counts_are_those_of_the_real_weights(golden: Path) -> None:
    (size,) = run(str(golden / "teacher"), "--vision-config", str(golden / "clip"))
    model = load_model(golden / "teacher", vision_config=golden / "clip", dtype=torch.bfloat16)
    assert size["parameters"]["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert size["parameters"]["projector"] == sum(p.numel() for p in model.model.mm_projector.parameters())
    assert size["weight_bytes"]["bfloat16"] == sum(parameter.nbytes for parameter in model.parameters())
    assert (size["num_layers"], size["hidden_size"], size["num_heads"]) == (4, 128, 8)


def test_one_s_own_checkpoint_needs_no_weights(golden: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    raw = official_config("MobileVLM_V2-3B") | {"num_hidden_layers": 2, "num_key_value_heads": 4}
    (tmp_path / "mine/config.json").write_text(json.dumps(raw))
    (size,) = run(str(tmp_path / "mine"))
    assert (size["num_layers"], size["num_key_value_heads"], size["image_size"]) == (2, 4, 336)
    printed = CliRunner().invoke(main, ["models", str(tmp_path / "mine")]).stdout
    assert "mine" in printed.splitlines()[0] and f"{size['parameters']['total']:,}" in printed


def test_members_by_hub_id_need_no_network_and_give_a_config() -> None:
    (size,) = run("mtgv/MobileVLM_V2-7B")
    config = family_config("MobileVLM_V2-7B")
    assert isinstance(config, VLMConfig) and config.raw["_name_or_path"] == "mtgv/MobileVLM_V2-7B"
    assert (size["num_layers"], size["hidden_size"]) == (config.num_layers, config.hidden_size) == (32, 4096)
    assert model_size("x", config).weight_bytes == size["weight_bytes"]
    changed = official_config("MobileVLM_V2-7B")
    changed["hidden_size"] = 1
    assert official_config("MobileVLM_V2-7B")["hidden_size"] == 4096
    with pytest.raises(
        InputError, match=r"MobileVLM_V2-9B: not a model of the family; choose one of mtgv/MobileVLM_V2-1.7B"
    ):
        official_config("MobileVLM_V2-9B")


def test_the_table_has_a_column_per_model() -> None:
    result = CliRunner().invoke(main, ["models"])
    header, *lines = result.stdout.splitlines()
    assert header.split() == [name.removeprefix("mtgv/") for name in MEMBERS]
    layers = next(line for line in lines if line.startswith("layers"))
    assert layers.split()[1:] == ["24", "32", "32"]
    assert all(len(line) <= 79 for line in (header, *lines))


def test_a_missing_checkpoint_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["models", str(tmp_path / "none")])
    assert result.exit_code == 1 and "no such checkpoint folder" in result.stderr and not result.stdout
