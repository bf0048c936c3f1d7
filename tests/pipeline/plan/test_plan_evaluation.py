"""`alignkd plan` on the section `eval`: how many questions there are, and what is missing to ask them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

EVAL = Path(__file__).parents[2] / "golden" / "eval"
Alignkd = Callable[..., Any]
WriteConfig = Callable[..., Path]


def with_section(config: Path, **values: Any) -> Path:
    sections = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(sections | {"eval": values}))
    return config


def test_questions_are_those_of_the_files(alignkd_here: Alignkd, write_config: WriteConfig, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for name in ("gqa", "mme"):
        (root / name).symlink_to(EVAL / name / "data")
    config = with_section(write_config(), data=str(root), benchmarks="gqa,mme,pope", teacher=True)
    done = alignkd_here("plan", config)
    assert done.returncode == 0, done.stderr
    lines = {
        name: sum(1 for line in file.read_text().splitlines() if line.strip())
        for name, file in (("gqa", root / "gqa" / "llava_gqa_testdev_balanced.jsonl"),
                           ("mme", root / "mme" / "llava_mme.jsonl"))
    }  # fmt: skip
    assert (
        f"eval      student, teacher: {sum(lines.values())} questions each (gqa {lines['gqa']}, mme {lines['mme']}, "
        f"pope ?); answers and scores in {tmp_path / 'out' / 'eval'}"
    ) in done.stdout.splitlines()
    (problem,) = [line for line in done.stdout.splitlines() if "cannot be asked" in line]
    assert "pope" in problem and str(root) in problem
    found = json.loads(alignkd_here("plan", config, "--json").stdout)["evaluation"]
    assert found["questions"] == lines | {"pope": None} and len(found["problems"]) == 1
    limited = with_section(config, data=str(root), benchmarks="gqa", limit=5)
    assert json.loads(alignkd_here("plan", limited, "--json").stdout)["evaluation"]["questions"] == {"gqa": 5}


def test_without_the_section_there_is_no_line(alignkd_here: Alignkd, write_config: WriteConfig) -> None:
    config = write_config()
    assert not [line for line in alignkd_here("plan", config).stdout.splitlines() if line.startswith("eval ")]
    assert json.loads(alignkd_here("plan", config, "--json").stdout)["evaluation"] is None
