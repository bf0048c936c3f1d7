"""`alignkd run CONFIG` in one process, whose evaluation waits for a signal after so many questions.

python halting_run.py CONFIG QUESTIONS
"""

import json
import sys
import time
from typing import Any

from click.testing import CliRunner, Result

from alignkd.pipeline.cli import main
from alignkd.pipeline.evaluation.parts import AnswerParts
from alignkd.pipeline.runs import stages
from alignkd.pipeline.runs.teacher import worker
from alignkd.teacher_dump.operation.control import DumpControl


def invoke_here(*arguments: object) -> Result:
    """A command in this process."""
    return CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)


def phase_here(arguments: list[str], as_json: bool, launcher: list[str]) -> Any:
    """A phase of `alignkd run` in this process, in place of `run_alignkd`, which starts one."""
    done = invoke_here(*arguments, *(["--json"] if as_json else []))
    if done.exit_code:
        sys.stderr.write(done.stderr)
        sys.exit(done.exit_code)
    sys.stdout.write("" if as_json else done.stdout)
    return json.loads(done.stdout) if as_json else None


def run_that_halts(config: str, questions: int) -> int:
    """Exit code of the command."""

    class Halts(DumpControl):
        is_evaluation = False

        def over(self, output: Any) -> Any:
            self.is_evaluation = isinstance(output, AnswerParts)
            return super().over(output)

        def advance(self, **counts: int) -> None:
            super().advance(**counts)
            while self.is_evaluation and self.status.samples >= questions and not self.stops.finishing:
                time.sleep(0.01)

    worker.DumpControl = Halts  # type: ignore[misc]
    stages.run_alignkd = phase_here
    return invoke_here("run", config).exit_code


if __name__ == "__main__":
    sys.exit(run_that_halts(sys.argv[1], int(sys.argv[2])))
