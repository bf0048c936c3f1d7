"""A tiny MobileVLM whose answers are short, and benchmarks' folders that tests may change."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkd.vlm.families.mobilevlm.weights.writer import write_weights
from alignkd.vlm.weights.files import read_weights

Evaluate = Callable[..., Any]
GOLDEN_EVAL = Path(__file__).parents[2] / "golden" / "eval"
END = 2
# the logit of the end token times this: at random the largest after a few tokens
EAGERNESS = 30.0
# no golden prompt is longer than 356 tokens
POSITIONS = 364


@pytest.fixture(scope="session")
def eval_golden() -> Path:
    """A folder per benchmark: questions, pictures, and what the original made of them."""
    return GOLDEN_EVAL


@pytest.fixture(scope="session")
def expected_of(eval_golden: Path) -> Callable[[str], dict[str, Any]]:
    """expected_of(benchmark): content of its `expected.json`."""

    def read(name: str) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((eval_golden / name / "expected.json").read_text())
        return values

    return read


@pytest.fixture(scope="session")
def brief_model(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden teacher with short answers of different lengths."""
    folder = tmp_path_factory.mktemp("checkpoints") / "brief-model"
    shutil.copytree(golden / "teacher", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = read_weights(golden / "teacher")
    head = weights["lm_head.weight"].clone()
    head[END] *= EAGERNESS
    write_weights(weights | {"lm_head.weight": head}, folder, dtype=None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": POSITIONS}))
    return folder


@pytest.fixture
def data_root(eval_golden: Path, tmp_path: Path) -> Path:
    """A folder that holds the folder of every benchmark, to be changed at will."""
    root = tmp_path / "data"
    for folder in sorted(path for path in eval_golden.iterdir() if path.is_dir()):
        shutil.copytree(folder / "data", root / folder.name)
    return root
