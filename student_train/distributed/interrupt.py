"""Signals that end a run after the current step, with a checkpoint.

These are Ctrl-C, SIGTERM, and the signals of a closed terminal (SIGHUP) and of batch systems (SIGUSR1, SIGUSR2).
One stop request often arrives twice: DeepSpeed's launcher answers the terminal's SIGINT with a SIGTERM of its own, and
`alignkd run` passes on a SIGTERM that may have been sent to the whole process group. A second request ends the process
at once, so time decides whether a signal repeats the first request.
"""

import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Self

from alignkd.disk.temporary import remove_temporary_folders
from alignkd.student_train.distributed.launcher import LauncherWatch

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# `nohup` and batch systems ignore these; a run started that way must not end because of them.
IGNORABLE = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# Within this time a signal belongs to the first request; by whether it is the same signal.
SECONDS_OF_ONE_REQUEST = {True: 1.0, False: 10.0}
_CLOSED = 0  # no signal has this number


class StopSignals:
    """While entered, the first signal is recorded, and a second stop request ends the process at once.

    Attributes:
        received: number of the first signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._launcher = LauncherWatch(os.environ)
        self._previous: dict[int, object] = {}
        self._pipe: tuple[socket.socket, socket.socket] | None = None

    @property
    def stop_requested(self) -> bool:
        """Whether the run must end after the current step: a signal came, or the launcher of the run has died."""
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
        """Start a thread that the kernel notifies of signals, also while the main thread waits in a collective."""
        self._pipe = socket.socketpair()
        for end in self._pipe:
            end.setblocking(end is self._pipe[0])
        signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second_request, args=(self._pipe[0],), daemon=True, name="stops").start()


def _end_at_second_request(pipe: socket.socket) -> None:
    first = began = 0.0
    while numbers := pipe.recv(64):
        for number in numbers:
            if number == _CLOSED:
                return
            if number not in ENDING:
                continue
            if not first:
                first, began = number, time.monotonic()
            elif time.monotonic() - began > SECONDS_OF_ONE_REQUEST[number == first]:
                remove_temporary_folders()
                os._exit(128 + number)
