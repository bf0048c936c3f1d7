"""What every command prints and how it ends: one line per error, JSON on request, progress on a terminal only."""

import codecs
import contextlib
import errno
import functools
import json
import logging
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

import click

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
# as a shell reports git, grep or cat in the same place
NO_READER = 128 + signal.SIGPIPE


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """The `--json` flag of a command that reports."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object for scripts.")(command)


def print_json(values: Any) -> None:
    """`values` as indented JSON on stdout; in ASCII where stdout is not UTF-8, because JSON is UTF-8."""
    as_ascii = not is_utf8(getattr(sys.stdout, "encoding", None) or "utf-8")
    click.echo(json.dumps(values, indent=2, ensure_ascii=as_ascii, default=str))


def is_utf8(encoding: str) -> bool:
    """Whether `encoding` is one of the names of UTF-8."""
    return codecs.lookup(encoding).name == "utf-8"


def say(message: str) -> None:
    """One line on stderr. A stderr that nobody reads any more is no reason to end a run of days."""
    with contextlib.suppress(OSError):
        click.echo(f"alignkd: {message}", err=True)


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 1."""
    say(" ".join(message.split()))
    sys.exit(1)


def end_for(error: OSError) -> NoReturn:
    """End the process for an error of the system: one line that names the file and the next step, exit code 1.

    Where the reader of stdout or stderr has ended (`| head`), there is nothing to report: no line, exit code 141.
    """
    no_reader = error.errno == errno.EPIPE and any(map(_has_no_reader, (1, 2)))
    if not no_reader:
        # an error without a file name is one of an open file or stream
        say(" ".join(f"{error.filename or 'output'}: {reason(error)}; {next_step(error)}".split()))
    _forget_output()
    sys.exit(NO_READER if no_reader else 1)


def _has_no_reader(descriptor: int) -> bool:
    """Whether a pipe's other end is closed; asked because a broken pipe may also be one to a worker process."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _forget_output() -> None:
    """Let the interpreter flush what stdout did not take to nowhere; it would print an error of its own."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None and sys.stdout.fileno() == 1:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)


def log_to_stderr(package: str) -> None:
    """Show what a package logs, a line each: steps of a batch job, checkpoints that were broken."""
    logger = logging.getLogger(package)
    logger.setLevel(logging.INFO)
    if not logger.handlers:
        logger.addHandler(_Lines())


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user can cause into one line and an exit code: a traceback would be a bug of ours.

    Every domain error of the rooms below is a ValueError with a complete message; a full disk, a missing
    permission and the like are OSErrors, whose next step is that of `alignkd.disk.next_step`.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            say("interrupted; run the same command again to go on")
            sys.exit(INTERRUPTED)
        except OSError as error:
            end_for(error)
        except ValueError as error:
            if not is_domain_error(error):
                raise
            fail(str(error))

    return wrapped


def is_domain_error(error: ValueError) -> bool:
    """Whether `error` has a message for users; other ValueErrors are faults of the program or of a library."""
    return isinstance(error, AlignkdError)


def format_bytes(count: int) -> str:
    """`count` bytes with a binary unit: 1536 -> '1.5 KiB'."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
