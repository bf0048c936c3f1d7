"""How a command ends after an error: one line on stderr and an exit code, never a traceback."""

import contextlib
import errno
import functools
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason
from alignkd.pipeline.console.printing import say

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
# the exit code that a shell reports for git, grep or cat when the reader of their output has ended
NO_READER = 128 + signal.SIGPIPE


def clean_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors that a user can cause into one line and an exit code; any other exception keeps its traceback.

    Every domain error of the rooms below is a ValueError with a complete message. A full disk, a missing permission
    and the like are OSErrors; `alignkd.disk.next_step` gives their next step.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            say("interrupted; run the same command again to resume")
            sys.exit(INTERRUPTED)
        except OSError as error:
            end_for(error)
        except ValueError as error:
            if not is_domain_error(error):
                raise
            fail(str(error))

    return wrapped


def is_domain_error(error: ValueError) -> bool:
    """Whether `error` is one of alignkd's own classes, whose messages are written for users, not one of a library."""
    return isinstance(error, AlignkdError)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 1."""
    say(" ".join(message.split()))
    sys.exit(1)


def end_for(error: OSError) -> NoReturn:
    """End the process after a system error: one line that names the file and the next step, exit code 1.

    If the reader of stdout or stderr has ended (`| head`), nothing is printed and the exit code is 141.
    """
    no_reader = error.errno == errno.EPIPE and any(map(_has_no_reader, (1, 2)))
    if not no_reader:
        # an error without a file name comes from an open file or stream
        say(" ".join(f"{error.filename or 'output'}: {reason(error)}; {next_step(error)}".split()))
    _discard_output()
    sys.exit(NO_READER if no_reader else 1)


def _has_no_reader(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed; EPIPE alone may also come from a pipe to a worker process."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Redirect stdout to /dev/null: the interpreter's final flush would fail and print a second error."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None and sys.stdout.fileno() == 1:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.close(nowhere)
