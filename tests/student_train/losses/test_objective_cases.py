"""`benchmarks/objective_cases.py`: golden values and gradients of every objective by the functions of the product."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from objective_cases import DTYPES, errors_of, main, objectives
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[3]
GOLDEN = ROOT / "tests" / "golden" / "objectives"
BOUNDS = {"float64": 1e-8, "float32": 1e-5}


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    """A copy of the golden cases of one objective."""
    shutil.copytree(GOLDEN / "counterfactual", tmp_path / "cases" / "counterfactual")
    return tmp_path / "cases"


def run(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(main, [str(folder), *options])


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("objective", objectives())
def test_golden_values_and_gradients(objective: str, dtype: str, tmp_path: Path) -> None:
    (tmp_path / objective).symlink_to(GOLDEN / objective)
    found, missing = errors_of(tmp_path, DTYPES[dtype])
    assert missing == [] and found.keys() == {objective}
    assert found[objective]["cases"] == len([*(GOLDEN / objective).glob("*.safetensors")]) > 0
    assert found[objective]["worst_relative_error"] <= BOUNDS[dtype]


def test_the_command_runs_from_the_root_and_prints_one_object(cases: Path) -> None:
    """In a process of its own, which finds the evaluators by the place of the file alone."""
    found = subprocess.run(
        [sys.executable, "benchmarks/objective_cases.py", str(cases), "--json"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (name, entry), *others = json.loads(found.stdout)["objectives"].items()
    assert (name, entry["cases"], others) == ("counterfactual", 3, [])
    assert 0 <= entry["worst_relative_error"] <= 1e-8
    assert entry.keys() == {"cases", "worst_relative_error"}


@pytest.mark.parametrize("key", ["in.student_keep", "in.teacher_drop", "grad.effect.student_full"])
def test_a_changed_number_is_found(cases: Path, key: str) -> None:
    """One number of an input, or of an expected gradient."""
    path = cases / "counterfactual" / "1.safetensors"
    tensors = load_file(path)
    tensors[key].view(-1)[0] += 1e-3
    save_file(tensors, path)
    result = run(cases, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["objectives"]["counterfactual"]["worst_relative_error"] > 1e-6


def test_a_changed_value_is_found(cases: Path) -> None:
    change(cases, lambda values: values | {"keep_sum": values["keep_sum"] * (1 + 1e-6)})
    found, _ = errors_of(cases, torch.float64)
    assert found["counterfactual"]["worst_relative_error"] == pytest.approx(1e-6, rel=1e-3)


def test_a_value_that_nothing_computes_is_reported(cases: Path) -> None:
    change(cases, lambda values: values | {"another_sum": 1.0})
    result = run(cases, "--json")
    assert result.exit_code == 1 and "0: another_sum is not computed" in result.output
    (line, *_) = result.stdout.splitlines()
    assert json.loads(line)["objectives"]["counterfactual"]["worst_relative_error"] is None


def test_a_gradient_that_nothing_computes_is_reported(cases: Path) -> None:
    path = cases / "counterfactual" / "2.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "grad.another.student_full": tensors["in.student_full"].clone()}, path)
    result = run(cases)
    assert result.exit_code == 1 and "2: grad.another.student_full is not computed" in result.output


def test_a_missing_input_is_named(cases: Path) -> None:
    path = cases / "counterfactual" / "0.safetensors"
    save_file({name: values for name, values in load_file(path).items() if name != "in.labels"}, path)
    result = run(cases)
    assert result.exit_code == 1 and "the case has no 'labels'" in result.output


@pytest.mark.parametrize("name", ["unknown", "case", "counter.factual"])
def test_an_unknown_objective_is_refused(cases: Path, name: str) -> None:
    (cases / "counterfactual").rename(cases / name)
    result = run(cases)
    assert result.exit_code == 1 and f"no objective has the name '{name}'" in result.output


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.exit_code == 1 and "has no case OBJECTIVE/N.safetensors" in result.output


def change(cases: Path, changed: Any) -> None:
    path = cases / "counterfactual" / "0.json"
    path.write_text(json.dumps(changed(json.loads(path.read_text()))))
