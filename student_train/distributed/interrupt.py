"""Signals that end a run after the step in hand, with a checkpoint.

Ctrl-C, SIGTERM, and what a closed terminal (SIGHUP) and batch systems (SIGUSR1, SIGUSR2) send before the end.
One wish often arrives twice: DeepSpeed's launcher answers the terminal's SIGINT with a SIGTERM of its own, and
`alignkd run` passes on a SIGTERM that may have been sent to the whole process group. A second wish ends the process at
once, so the two are told apart by time.
"""

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from alignkd.student_train.distributed.launcher import LauncherWatch

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# `nohup` and batch systems switch these off; a run that was started so must not die of them.
IGNORABLE = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
SECONDS_OF_ONE_WISH = {True: 1.0, False: 10.0}  # by whether the signal is the first one again
_CLOSED = 0  # no signal has this number


class StopSignals:
    """While entered, the first signal is remembered, and a second wish to end ends the process at once.

    Attributes:
        received: number of the signal, 0 while there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._launcher = LauncherWatch(os.environ)
        self._previous: dict[int, object] = {}
        self._pipe: tuple[socket.socket, socket.socket] | None = None

    @property
    def asked(self) -> bool:
        """Whether the run is to end after the step in hand: a signal came, or the launcher that started it is gone."""
        return self.received > 0 or self._launcher.is_gone()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._watch()
            for number in ENDING:
                if number not in IGNORABLE or signal.getsignal(number) != signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            self._pipe[1].send(bytes([_CLOSED]))

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number

    def _watch(self) -> None:
        """A thread that hears of signals from the kernel, also while the main thread waits in a collective."""
        self._pipe = socket.socketpair()
        for end in self._pipe:
            end.setblocking(end is self._pipe[0])
        signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second_wish, args=(self._pipe[0],), daemon=True, name="stops").start()


def _end_at_second_wish(pipe: socket.socket) -> None:
    first = began = 0.0
    while numbers := pipe.recv(64):
        for number in numbers:
            if number == _CLOSED:
                return
            if number not in ENDING:
                continue
            if not first:
                first, began = number, time.monotonic()
            elif time.monotonic() - began > SECONDS_OF_ONE_WISH[number == first]:
                os._exit(128 + number)
