"""`alignkd run` refuses a student that training would refuse before the teacher runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from alignkd.pipeline.cli import main

STUDENTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family": ("gemma3", {}, "the pair does not fit: tokenizer"),
    "another image processor": ("qwen3_vl", {"processor": "pil"}, "supervised and logit losses only"),
}


@pytest.mark.parametrize("case", STUDENTS)
def test_another_student_is_refused_first(
    case: str, write_family_config: Callable[..., Path], checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    family, options, said = STUDENTS[case]
    path = write_family_config(tmp_path, checkpoint("qwen3_vl", seed=1))
    sections = yaml.safe_load(path.read_text())
    sections["student"] = {"checkpoint": str(checkpoint(family, seed=2)), **options}
    sections["train"] = {"output": str(tmp_path / "out"), "steps": 1}
    path.write_text(yaml.safe_dump(sections))
    result = CliRunner().invoke(main, ["run", str(path)])
    assert result.exit_code == 1 and said in result.stderr and len(result.stderr.splitlines()) == 1
    assert "alignkd models --pair" in result.stderr and not (tmp_path / "store").exists()
