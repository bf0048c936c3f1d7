"""Checks that this machine's GPU computes the same as a CPU, one step at a time.

    python benchmarks/gpu_check.py [--device cuda] [--seconds 540] [--out DIR] [--steps 0-4]
    python benchmarks/gpu_check.py --tiny --device cpu
    python benchmarks/gpu_check.py --table DIR

After each step, one JSON line is printed on stdout: `name`, `ok`, `seconds`, `figures`, and `problem` if there is one.
The same lines are in DIR/gpu_check.jsonl, of which `--table` makes a table for docs/benchmarks.md. Steps 0 to 4 compare
results, 5 to 8 measure memory and time. Their durations on a GPU have not been measured.
Each step runs in its own process with its own time limit, so a step that hangs or is killed does not affect the others;
its output is in DIR/NAME.log. A step that does not fit into `--seconds` is skipped: `ok` is null. The exit code is 1 if
a step failed. The models and samples are those of `tests/golden`; nothing is downloaded.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
LEAST_SECONDS = 20
LINES = "gpu_check.jsonl"


@dataclass(frozen=True)
class Step:
    """One step: the module in `gpu_steps` and the seconds after which it is stopped."""

    name: str
    limit: int


STEPS = (
    Step("environment", 90),
    Step("device_rules", 90),
    Step("dumps", 150),
    Step("trainings", 240),
    Step("waits", 90),
    Step("real_memory", 150),
    Step("ratios", 200),
    Step("levers", 200),
    Step("commands", 120),
)


def main() -> None:
    """Run the chosen steps."""
    options = parse()
    if options.table is not None:
        print(table(options.table / LINES))
        return
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in options.steps:
        left = deadline - time.monotonic()
        if left < LEAST_SECONDS:
            line = {
                "name": step.name,
                "ok": None,
                "seconds": 0.0,
                "figures": {},
                "problem": f"skipped, {left:.0f} s left",
            }
        else:
            # the limits are for a GPU; a CPU may be busy with other work
            limit = step.limit * (3 if options.device == "cpu" else 1)
            line = run(step, options, min(limit, left))
        lines.append(line)
        print(json.dumps(line), flush=True)
        with (options.out / LINES).open("a") as file:
            file.write(json.dumps(line) + "\n")
    sys.exit(any(line["ok"] is False for line in lines))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="less of everything: to try the steps themselves")
    parser.add_argument("--seconds", type=float, default=540.0, help="for all steps together")
    parser.add_argument(
        "--out", type=Path, default=None, help="stores, outputs and logs; a new temporary folder by default"
    )
    parser.add_argument("--table", type=Path, help="folder of an earlier run: print its figures, run nothing")
    parser.add_argument("--steps", type=chosen, default=STEPS, help="such as 2, 0-4 or 0,3 (default: all)")
    options = parser.parse_args()
    if options.table is not None:
        if not (options.table / LINES).is_file():
            parser.error(f"{options.table} has no {LINES}; give the --out of an earlier run")
        return options
    options.out = options.out or Path(tempfile.mkdtemp(prefix="alignkd-gpu-"))
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; give a new folder")
    return options


def chosen(text: str) -> tuple[Step, ...]:
    """Parse numbers of steps."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    if unknown := numbers - set(range(len(STEPS))):
        raise argparse.ArgumentTypeError(f"no step {min(unknown)}; steps are 0 to {len(STEPS) - 1}")
    return tuple(step for number, step in enumerate(STEPS) if number in numbers)


def run(step: Step, options: argparse.Namespace, limit: float) -> dict[str, Any]:
    """Run a step in its own process; return its line, also after a crash or a timeout."""
    result, log = options.out / f"{step.name}.json", options.out / f"{step.name}.log"
    result.unlink(missing_ok=True)
    given = {"device": options.device, "tiny": options.tiny, "out": str(options.out), "result": str(result)}
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "gpu_steps", step.name, json.dumps(given)],
            env={**os.environ, **paths(), "HF_HUB_OFFLINE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            ended = f"ended with exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            ended = f"stopped after {limit:.0f} s"
    found = json.loads(result.read_text()) if result.exists() else {"ok": False, "figures": {}}
    if process.returncode != 0:
        found = {"problem": f"{ended}; {last_line(log)}", **found, "ok": False}
    return {"name": step.name, "ok": found.pop("ok"), "seconds": round(time.monotonic() - began, 1), **found}


def table(lines: Path) -> str:
    """The figures of a run as markdown, a row for each; a figure of several values has their names before them."""
    rows = ["| step | figure | value |", "|:--|:--|:--|"]
    for line in map(json.loads, lines.read_text().splitlines()):
        result = {True: "passed", False: "failed", None: "skipped"}[line["ok"]]
        rows.append(
            f"| {line['name']} | {result} | {line['seconds']} s{'; ' + p if (p := line.get('problem')) else ''} |"
        )
        rows += [f"| | {name} | {shown(value)} |" for name, value in line["figures"].items()]
    return "\n".join(rows)


def shown(value: Any) -> str:
    """A figure as text without line ends and bars."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "; ".join(map(shown, value))
    return " ".join(str(value).replace("|", "/").split())


def paths() -> dict[str, str]:
    """Environment in which the project's own modules precede installed ones."""
    before = os.environ.get("PYTHONPATH")
    return {
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), str(BENCHMARKS.parent / "src"), *([before] if before else [])])
    }


def last_line(log: Path) -> str:
    """The last line of a step's output."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{log}: {lines[-1][:300]}" if lines else f"{log} is empty"


if __name__ == "__main__":
    main()
