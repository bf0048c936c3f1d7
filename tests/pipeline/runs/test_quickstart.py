"""docs/quickstart.md: its commands run in their order, on tiny models in place of those of the demo."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from alignkd.pipeline.cli import main

PAGE = (Path(__file__).parents[3] / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(golden: Path, golden_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `demo/` as the page has it, and `run.yaml` from the page."""
    for name, target in {
        "teacher": golden / "teacher",
        "students/fresh/seed-0": golden / "student",
        "data/train/conversations.json": golden / "v1.json",
        "data/train/images": golden_images,
        "clip": golden / "clip",
    }.items():
        (tmp_path / "demo" / name).parent.mkdir(parents=True, exist_ok=True)
        if target == golden_images:
            (tmp_path / "demo" / name).mkdir()
            for image in golden_images.iterdir():
                (tmp_path / "demo" / name / image.name).symlink_to(image)
        else:
            (tmp_path / "demo" / name).symlink_to(target)
    scene = tmp_path / "demo" / "data" / "train" / "images" / "scenes" / "000000.png"
    scene.parent.mkdir()
    scene.symlink_to(golden_images / "coffee.png")
    [first, *_] = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    values: dict[str, Any] = yaml.safe_load(first)
    # random weights see no images, and the tiny checkpoints only name their vision tower
    values["teacher"] |= {"sanity": "off", "vision_config": "demo/clip"}
    values["student"] |= {"vision_config": "demo/clip"}
    values["train"] |= {"steps": 2, "micro_batch": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_run_in_their_order(folder: Path) -> None:
    tested = PAGE[PAGE.index("## 2.") : PAGE.index("## 6.")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", tested, re.MULTILINE | re.DOTALL)
    commands = [line for language, block in blocks if not language for line in block.splitlines()]
    assert len(commands) == 10
    outputs = {}
    for line in commands:
        program, *words = shlex.split(line, comments=True)
        options = ["--vision-config", "demo/clip"] if words[0] == "ask" else []
        done = CliRunner().invoke(main, [*words, *options])
        assert program == "alignkd" and done.exit_code == 0, (line, done.output, done.exception)
        outputs[" ".join(words[:2])] = done.output
    assert "sample 'ft-0'" in outputs["data show"] and "2" in outputs["train --status"]
    assert (folder / "out" / "student" / "config.json").is_file()
    [code] = [block for language, block in blocks if language == "python"]
    exec(compile(code, "quickstart.md", "exec"), {})
