"""How every command talks to people and scripts: one line per error, JSON on request, progress on a terminal only."""

import functools
import json
import logging
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """The `--json` flag of a command that reports."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for scripts.")(command)


def print_json(values: Any) -> None:
    """`values` as indented JSON on stdout."""
    click.echo(json.dumps(values, indent=2, ensure_ascii=False, default=str))


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 1."""
    click.echo(f"alignkd: {' '.join(message.split())}", err=True)
    sys.exit(1)


def log_to_stderr(package: str) -> None:
    """Show what a package logs, a line each: steps of a batch job, checkpoints that were broken."""
    logger = logging.getLogger(package)
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Lines())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"alignkd: {record.getMessage()}", err=True)


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user can cause into one line and an exit code: a traceback would be a bug of ours.

    Every domain error of the rooms below is a ValueError with a complete message; a full disk, a missing
    permission and the like are OSErrors.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            click.echo("alignkd: interrupted; run the same command again to go on", err=True)
            sys.exit(INTERRUPTED)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}; free space or permissions may be missing")
        except ValueError as error:
            if not is_domain_error(error):
                raise
            fail(str(error))

    return wrapped


def is_domain_error(error: ValueError) -> bool:
    """Whether `error` is one of our own classes, with a message made for users, and no accident inside a library."""
    rooms = ("pipeline.", "teacher_dump.", "student_train.", "vlm.", "storage.")
    return type(error).__module__.startswith(rooms)


def format_bytes(count: int) -> str:
    """`count` bytes with a binary unit: 1536 -> '1.5 KiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
