"""What a command prints: results on stdout, one-line messages on stderr, JSON on request."""

import codecs
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import click

from alignkd.pipeline.console.plain_text import plain

P = ParamSpec("P")
R = TypeVar("R")


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add the flag `--json` to a command that reports a result."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for scripts.")(command)


def print_json(values: Any) -> None:
    """Print `values` as indented JSON on stdout; JSON is UTF-8, so on any other stdout it is written in ASCII."""
    as_ascii = not is_utf8(getattr(sys.stdout, "encoding", None) or "utf-8")
    click.echo(json.dumps(values, indent=2, ensure_ascii=as_ascii, default=str))


def is_utf8(encoding: str) -> bool:
    """Whether `encoding` is one of the names of UTF-8."""
    return codecs.lookup(encoding).name == "utf-8"


def say(message: str) -> None:
    """Print one line on stderr. A closed stderr is ignored: it must not end a run of several days."""
    with contextlib.suppress(OSError):
        print_note(f"alignkd: {message}")


def print_note(line: str) -> None:
    """Print a line on stderr that is not the result; control characters of ids and reasons are shown (`plain`)."""
    click.echo(plain(line), err=True)


def log_to_stderr(package: str) -> None:
    """Show the log records of a package, one line each, such as a checkpoint that was skipped."""
    logger = logging.getLogger(package)
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Lines())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def format_count(count: int, noun: str) -> str:
    """For example "1 shard" or "2 shards"; every noun here has a regular plural."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def format_bytes(count: int) -> str:
    """`count` bytes with a binary unit: 1536 -> '1.5 KiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def format_duration(seconds: float) -> str:
    """`seconds` in a readable unit: 42 s, 12 min, 3.4 h, 5.2 days."""
    for unit, size, least in (("days", 86400.0, 2.0), ("h", 3600.0, 1.0), ("min", 60.0, 2.0)):
        if seconds >= least * size:
            return f"{seconds / size:.0f} min" if unit == "min" else f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
