"""The golden samples and their teacher, and those of a family of transformers."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_data
import tiny_families
from foreign_worlds import World, make_world

Alignkd = Callable[..., "subprocess.CompletedProcess[str]"]
FAMILY = "qwen3_vl"


@pytest.fixture(scope="session")
def golden_world(
    golden: Path, golden_images: Path, tmp_path_factory: pytest.TempPathFactory, alignkd_here: Alignkd
) -> World:
    """The golden v1 samples and their MobileVLM teacher."""
    folder = tmp_path_factory.mktemp("golden-world")
    data = folder / "data.json"
    data.write_text(json.dumps(json.loads((golden / "v1.json").read_text())))
    model = {"checkpoint": str(golden / "teacher"), "vision_config": str(golden / "clip")}
    config = {
        "data": {"conversations": str(data), "images": str(golden_images), "template": "v1"},
        "teacher": {**model, "sanity": "off"},
    }
    options = ["--checkpoint", model["checkpoint"], "--vision-config", model["vision_config"], "--template", "v1"]
    return make_world(folder, config, options, alignkd_here)


@pytest.fixture(scope="session")
def family_world(tmp_path_factory: pytest.TempPathFactory, alignkd_here: Alignkd) -> World:
    """Samples with no, one and several images, and a teacher of transformers."""
    folder = tmp_path_factory.mktemp("family-world")
    data = tiny_data.write(folder)
    teacher = tiny_families.build(FAMILY, folder / "teacher", seed=1)
    config = {
        "data": {"conversations": str(data.conversations), "images": str(data.images)},
        "teacher": {"checkpoint": str(teacher), "sanity": "off"},
    }
    return make_world(folder, config, ["--checkpoint", str(teacher)], alignkd_here)
