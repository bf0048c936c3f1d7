"""Evaluate golden cases of objectives by the functions of the product, values and gradients.

    python benchmarks/objective_cases.py tests/golden/objectives [--json] [--dtype float32]

FOLDER has one folder per objective, with the cases `N.safetensors` and `N.json` (`cases/objectives/case.py` has their
form). Exit code 1 if a value cannot be computed.
"""

import importlib
import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import click
import torch
from cases.objectives.case import Case, Found, not_computed, worst_relative_error

EVALUATORS = Path(__file__).parent / "cases" / "objectives"
DTYPES = {"float64": torch.float64, "float32": torch.float32}


def evaluated(case: Case) -> Found:
    """The case's values and gradients; the module of its objective has the name of its folder.

    Raises:
        click.ClickException: there is no such objective, or the case lacks an input.
    """
    folder = case.path.parent
    name = f"cases.objectives.{folder.name}"
    module = None
    if folder.name.isidentifier() and importlib.util.find_spec(name) is not None:
        module = importlib.import_module(name)
    if not hasattr(module, "evaluate"):
        raise click.ClickException(
            f"{folder}: no objective has the name {folder.name!r}, expected one of {', '.join(objectives())}"
        )
    assert module is not None
    try:
        found: Found = module.evaluate(case)
    except KeyError as error:
        raise click.ClickException(
            f"{case.path}: the case has no {error.args[0]!r}, which its objective needs"
        ) from error
    return found


def objectives() -> list[str]:
    """Names of the objectives that have an evaluator."""
    return sorted(path.stem for path in EVALUATORS.glob("*.py") if path.stem not in ("__init__", "case"))


def errors_of(folder: Path, dtype: torch.dtype) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Number of cases and worst relative error by objective, and the values that no function computes."""
    objectives: dict[str, dict[str, Any]] = {}
    missing: list[str] = []
    for path in sorted(path.with_suffix("") for path in folder.glob("*/*.safetensors")):
        case = Case.read(path, dtype)
        found = evaluated(case)
        missing += [f"{path}: {key} is not computed" for key in not_computed(case, found)]
        entry = objectives.setdefault(path.parent.name, {"cases": 0, "worst_relative_error": 0.0})
        entry["cases"] += 1
        entry["worst_relative_error"] = max(entry["worst_relative_error"], worst_relative_error(case, found))
    return objectives, missing


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dtype", "dtype_name", type=click.Choice([*DTYPES]), default="float64", help="dtype of the inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(folder: Path, dtype_name: str, as_json: bool) -> None:
    """Print a table, or one JSON object."""
    objectives, missing = errors_of(folder, DTYPES[dtype_name])
    if not objectives:
        raise click.ClickException(f"{folder} has no case OBJECTIVE/N.safetensors; give the folder of the objectives")
    if as_json:
        finite = {
            name: entry | {"worst_relative_error": _or_none(entry["worst_relative_error"])}
            for name, entry in objectives.items()
        }
        click.echo(json.dumps({"objectives": finite}))
    else:
        width = max(map(len, objectives))
        for name, entry in objectives.items():
            click.echo(f"{name:<{width}}  {entry['cases']:>3} cases  {entry['worst_relative_error']:.1e}")
    if missing:
        raise click.ClickException("\n".join(missing))


def _or_none(error: float) -> float | None:
    """JSON has no infinity."""
    return error if math.isfinite(error) else None


if __name__ == "__main__":
    main()
