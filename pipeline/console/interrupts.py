"""Ctrl-C ends a command within seconds, even while one of its threads is blocked in a read.

Pools and the interpreter join their threads at the end. A thread that reads from a file server that does not answer
would keep the process alive forever, whatever the main thread does with KeyboardInterrupt.
"""

import _thread
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from alignkd.disk.temporary import remove_temporary_folders

EXIT_CODE = 130
SECONDS_AFTER_CTRL_C = 3.0


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """Inside the block, Ctrl-C raises KeyboardInterrupt, and a few seconds later the process exits.

    For commands that can be cut off without leaving anything behind. If SIGINT is ignored or has another handler,
    nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()  # Python allows handlers there only
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: FrameType | None) -> NoReturn:
    # threading.Thread takes locks that the interrupted code may hold
    _thread.start_new_thread(_end_process, ())
    raise KeyboardInterrupt


def _end_process() -> None:
    time.sleep(SECONDS_AFTER_CTRL_C)
    with suppress(OSError):
        os.write(2, b"alignkd: interrupted while a read or write was in progress; process ended\n")
    remove_temporary_folders()
    os._exit(EXIT_CODE)
