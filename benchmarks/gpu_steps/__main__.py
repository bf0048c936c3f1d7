"""`python -m gpu_steps NAME SETTINGS`: runs one step; its line goes to a file, because libraries write to stdout."""

import importlib
import json
import sys
from pathlib import Path

from gpu_steps.check import Check


def main(name: str, given_json: str) -> None:
    """Run the step and write its line, also if the step raises; the traceback is in its log."""
    given = json.loads(given_json)
    check = Check(device=given["device"], tiny=given["tiny"], out=Path(given["out"]))
    try:
        importlib.import_module(f"gpu_steps.{name}").run(check)
    except Exception as error:
        text = " ".join(str(error).split())
        check.problems.append(f"{type(error).__name__}: {text[:300]}")
        raise
    finally:
        Path(given["result"]).write_text(json.dumps(check.line()))


if __name__ == "__main__":
    main(*sys.argv[1:])
