"""`alignkd run` and `alignkd models --pair` on models that make unequally many tokens of an image."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.models.pair import check_pair, compare
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.open import open_checkpoint

GOLDEN = Path(__file__).parents[2] / "golden" / "mobilevlm_v2_tiny"
OFF = {"attention": 0, "vision_all": 0, "vision_top": 0, "logit": 0}


@pytest.fixture
def wide_student(tmp_path: Path) -> Path:
    """576 tokens of an image, the teacher makes 144; without weights, which are not read."""
    folder = tmp_path / "student"
    shutil.copytree(GOLDEN / "student", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    raw = json.loads((folder / "config.json").read_text()) | {"mm_projector_type": "mlp2x_gelu"}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture
def make_run(wide_student: Path, tmp_path: Path) -> Any:
    def make(**losses: Any) -> RunConfig:
        vision = {"vision_config": str(GOLDEN / "clip")}
        return RunConfig.model_validate(
            {
                "data": {"conversations": str(GOLDEN / "v1.json"), "images": str(GOLDEN.parent / "images")},
                "teacher": {"checkpoint": str(GOLDEN / "teacher"), **vision},
                "student": {"checkpoint": str(wide_student), **vision},
                "store": {
                    "path": str(tmp_path / "store"),
                    "vision_states": "bfloat16",
                    "vision_text_affinity": "int8_unit",
                },
                "train": {"output": str(tmp_path / "out"), "steps": 1, "losses": OFF | losses},
            }
        )

    return make


def test_a_matching_makes_the_pair_possible(make_run: Any, wide_student: Path) -> None:
    check_pair(make_run(vsd=0.25, vlad=25.0, vision_matching="hungarian"))
    with pytest.raises(InputError, match=r"vsd and vlad need losses.vision_matching hungarian alone"):
        check_pair(make_run(vsd=0.25))
    with pytest.raises(InputError, match="supervised and logit losses only"):
        check_pair(make_run(vsd=0.25, vision_matching="hungarian", vision_all=1.0))
    pair = compare(
        open_checkpoint(str(GOLDEN / "teacher"), vision_config=GOLDEN / "clip"),
        open_checkpoint(str(wide_student), vision_config=GOLDEN / "clip"),
    )
    assert pair.matched_losses == ("vsd", "vlad") and not {*pair.losses} & {*pair.matched_losses}


def test_what_the_store_will_not_keep(make_run: Any) -> None:
    config = make_run(vsd=0.25, vlad=25.0).model_dump(mode="json", exclude_unset=True)
    for key, missing in (("vision_states", "vsd"), ("vision_text_affinity", "vlad")):
        store = {name: value for name, value in config["store"].items() if name != key}
        with pytest.raises(ValueError, match=f"train.losses weighs {missing}, but the store keeps no target for it"):
            RunConfig.model_validate(config | {"store": store})
    losses = OFF | {"vlad": 25.0, "vision_matching": "hungarian"}
    without = {name: value for name, value in config["store"].items() if name != "vision_states"}
    with pytest.raises(ValueError, match=r"train.losses weighs vision_matching hungarian, but the store keeps no"):
        RunConfig.model_validate(config | {"store": without, "train": config["train"] | {"losses": losses}})
