"""Ctrl-C ends a command within seconds, also where a thread of it is inside a read that does not return.

Pools and the interpreter wait for their threads when they end. A thread that reads from a file server which does not
answer would keep the process alive for ever, whatever the main thread does with KeyboardInterrupt.
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

EXIT_CODE = 130
SECONDS_AFTER_CTRL_C = 3.0


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """Ctrl-C in the block raises KeyboardInterrupt, and the process is gone a few seconds later.

    For commands that leave nothing behind when they are cut off. A SIGINT that is ignored, or handled by somebody
    else, stays so.
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
        os.write(2, b"alignkd: interrupted, and ended while a read or write was still under way\n")
    os._exit(EXIT_CODE)
