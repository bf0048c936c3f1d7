"""Prints the steps of the demo with their times; the times of a resumed demo add up."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from alignkd.pipeline.demo.folder import write_json

_INDENT = 22


def say_more(line: str) -> None:
    """Print one line below the name of a step."""
    say(f"{'':<{_INDENT}}{line}")


def say(line: str) -> None:
    """Print one line on stderr; stdout is for the report."""
    click.echo(line, err=True)


class Steps:
    """Times named steps and keeps the sums in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def __call__(self, name: str, what: str) -> Iterator[None]:
        """Time one step.

        Args:
            name: key of the step in the report.
            what: text printed at the start.
        """
        say(f"{name:<{_INDENT}}{what}")
        started = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - started
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 2)
            write_json(self.path, self.seconds)
        say_more(f"{took:.1f} s")
