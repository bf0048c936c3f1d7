"""Scoring needs neither torch nor what is built on it."""

import subprocess
import sys
from pathlib import Path

from golden_evaluations import GOLDEN

# `alignkd` with modules that cannot be imported
PROGRAM = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "numpy", "PIL", "pandas", "scipy", "sklearn", "matplotlib"}:
            raise ImportError(f"{name} was imported")

sys.meta_path.insert(0, Refused())
from alignkd.pipeline.cli import main
main()
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_scores_without_torch() -> None:
    for name, value in (("mmbench", "accuracy 60.00 %"), ("textvqa", "accuracy 74.59 %")):
        folder = GOLDEN / name
        done = run(
            *("eval", "score", "--benchmark", name),
            *("--data", folder / "data", "--answers", folder / "answers.jsonl"),
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert value in done.stdout


def test_the_program_of_this_test_refuses_torch() -> None:
    done = run("ask", "none", "x")
    assert done.returncode != 0 and "was imported" in done.stderr
