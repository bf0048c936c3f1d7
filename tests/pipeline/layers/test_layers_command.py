"""`alignkd layers` on live teachers, against the figures of stores that the same teachers wrote."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from layer_figures import assert_same_figures, result
from PIL import Image

from alignkd.pipeline.config.run_config import load_run_config
from alignkd.pipeline.demo.models import STUDENT, TEACHER_CHECKPOINT, write_configs
from alignkd.pipeline.demo.world.dataset import write_dataset
from alignkd.pipeline.models.pair import check_pair

Run = Callable[..., Any]
LONG = {"pairs": "all", "codec": "float32"}


@pytest.fixture(scope="module")
def demo_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's teacher, and a few of its scenes."""
    folder = tmp_path_factory.mktemp("demo")
    data = write_dataset(folder / "data", num_scenes=48, pool="train", seed=0, questions_per_scene=6)
    sections = {
        "data": {"conversations": str(data.conversations), "images": str(data.images), "template": "v1"},
        "teacher": {"checkpoint": str(TEACHER_CHECKPOINT), "batch": 16},
        "store": {"path": str(folder / "store"), "vision_all": "none", "vision_top": "none",
                  "attention": {"layers": [0, 1, 2, 3], **LONG}},
    }  # fmt: skip
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


def test_the_demos_teacher(demo_config: Path, alignkd_here: Run, tmp_path: Path) -> None:
    """The shares of informative queries that docs/choosing-targets.md shows for more scenes."""
    found = result(alignkd_here, "layers", demo_config, "--samples", "30", "--out", tmp_path / "a.png")
    shares = [layer["informative"] for layer in found["layers"]]
    assert shares[0] == pytest.approx(0.39, abs=0.06) and shares[1] == pytest.approx(0.88, abs=0.06)
    assert found["samples"] == 30 and found["recommended"]["layers"] == [0, 1]
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.text["Software"] == "alignkd layers"  # type: ignore[attr-defined]


def test_the_store_gives_the_same_figures(demo_config: Path, alignkd_here: Run) -> None:
    """Every sample of the data: live, and from the targets of a dump."""
    assert alignkd_here("dump", demo_config).returncode == 0
    stats = result(alignkd_here, "shards", "stats", demo_config.parent / "store")
    stored = {found["pairs"]: found for found in stats["attention_layers"]}
    assert stored.keys() == {"tqv", "vqv"}
    for pairs, of_store in stored.items():
        live = result(alignkd_here, "layers", demo_config, "--pairs", pairs)
        assert live["samples"] == of_store["records"] == 48 and live["without_image"] > 0
        assert_same_figures(live["layers"], of_store["layers"])
        for layer in live["layers"]:
            assert layer["bytes_per_sample"] == pytest.approx(of_store["bytes_per_sample"])


def test_the_choice_is_seeded(demo_config: Path, alignkd_here: Run) -> None:
    one, same, other = (
        result(alignkd_here, "layers", demo_config, "--samples", "5", "--seed", seed)["layers"] for seed in (1, 1, 2)
    )
    assert one == same and one != other


def test_the_table(demo_config: Path, alignkd_here: Run, tmp_path: Path) -> None:
    data = yaml.safe_load(demo_config.read_text())
    entries = json.loads(Path(data["data"]["conversations"]).read_text())[:4]
    entries.append({**entries[0], "id": "gone", "image": "gone.png"})
    (tmp_path / "data.json").write_text(json.dumps(entries))
    data["data"]["conversations"] = str(tmp_path / "data.json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    done = alignkd_here("layers", tmp_path / "run.yaml")
    assert done.returncode == 0
    assert "unusable: sample 'gone' (index 4)" in done.stderr
    first, head, *rows = done.stdout.splitlines()
    assert first.startswith("4 samples (1 unusable left out), ") and "the decoder has 4 layers" in first
    assert head.split()[:3] == ["layer", "vision", "mass"] and [row.split()[0] for row in rows[:4]] == list("0123")
    printed = yaml.safe_load("\n".join(rows[rows.index("store:") :]))
    assert printed["store"]["attention"]["codec"] == "float32" and "unknown" in done.stdout


def test_the_lines_are_the_configuration_of_a_run(demo_config: Path, alignkd_here: Run, tmp_path: Path) -> None:
    """Of a file without a store: pasted into it, they pass the checks of `alignkd run` for this teacher and student."""
    write_configs(tmp_path / "student", STUDENT)
    sections = {name: yaml.safe_load(demo_config.read_text())[name] for name in ("data", "teacher")}
    sections["student"] = {"checkpoint": str(tmp_path / "student")}
    path = tmp_path / "run.yaml"
    # without the store, losses of targets that it would keep cannot be checked
    path.write_text(yaml.safe_dump({**sections, "train": {"output": "out", "steps": 1, "losses": {"effect": 1.0}}}))
    lines = alignkd_here("layers", path, "--samples", "4").stdout.splitlines()
    printed = yaml.safe_load("\n".join(lines[lines.index("store:") :]))
    found = result(alignkd_here, "layers", path, "--samples", "4")["recommended"]
    assert printed == {**yaml.safe_load(found["store"]), **yaml.safe_load(found["train"])}
    printed["store"]["path"] = str(tmp_path / "store")
    printed["train"] |= {"output": str(tmp_path / "out"), "steps": 1}
    path.write_text(yaml.safe_dump(sections | printed))
    config = load_run_config(path, "run")
    check_pair(config)
    assert config.train is not None and config.train.losses.attention_layers == {0: (0,), 1: (1,)}


def test_refusals(demo_config: Path, alignkd_here: Run, tmp_path: Path) -> None:
    sections = yaml.safe_load(demo_config.read_text())
    entries = json.loads(Path(sections["data"]["conversations"]).read_text())
    (tmp_path / "text.json").write_text(json.dumps([entry for entry in entries if "image" not in entry]))
    sections["data"]["conversations"] = str(tmp_path / "text.json")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(sections))
    done = alignkd_here("layers", tmp_path / "run.yaml")
    assert done.returncode == 1 and "has a usable image" in done.stderr.splitlines()[-1]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({name: sections[name] for name in ("data", "store")}))
    done = alignkd_here("layers", tmp_path / "run.yaml")
    assert done.returncode == 1 and "teacher: section is missing, alignkd layers needs it" in done.stderr
    done = alignkd_here("layers", demo_config, "--out", demo_config)
    assert done.returncode == 1 and "is an input of the command" in done.stderr
