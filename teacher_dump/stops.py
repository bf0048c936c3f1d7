"""Ctrl-C and SIGTERM during a dump: which one finishes the shard in hand, which gives it up, and how soon it ends.

| signal | what happens |
|---|---|
| first Ctrl-C | the shard in hand is finished, no other is begun |
| second Ctrl-C | the shard in hand is given up at once |
| SIGTERM | the same: a preempted job has seconds, a shard takes minutes |

Giving up happens between two batches, where everything can be put away. A batch that takes longer than a preempted job
has left is cut off: what is on disk then is what a kill leaves, and the next run clears it away.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Self

SECONDS_AFTER_SIGTERM = 8.0
SECONDS_AFTER_CTRL_C = 3.0
_CLOSED = 0  # no signal has this number


class DumpStopped(BaseException):
    """The shard in hand is given up because of a signal.

    No Exception, like KeyboardInterrupt: code that turns whatever a broken file may raise into a message of its own
    must not take it for that.

    Attributes:
        signal: its number; a process that ends for it has exit code 128 + number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class StopSignals:
    """While entered, signals end the dump as the table above says. Without being entered it never stops anything.

    Attributes:
        received: number of the signal, 0 while there was none.
        finishing: no shard is to be begun any more.
        announce: set while there is a shard in hand: gives one line for the person at the keyboard, that it will be
            finished. While it is None any signal raises DumpStopped where it finds the main thread.
    """

    def __init__(self) -> None:
        self.received = 0
        self.finishing = False
        self.announce: Callable[[], str] | None = None
        self._giving_up = False
        self._previous: dict[int, object] = {}
        self._ended = threading.Event()
        self._pipe: tuple[socket.socket, socket.socket] | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            self._watch()
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._received)
            _entered.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if self._pipe is not None:
            _entered.remove(self)
            signal.set_wakeup_fd(-1)
            self._pipe[1].send(bytes([_CLOSED]))

    def check(self) -> None:
        """To be called between batches.

        Raises:
            DumpStopped: the shard in hand is to be given up.
        """
        if self._giving_up:
            raise DumpStopped(self.received)

    def forget(self) -> None:
        """In a forked child: signals are the parent's affair, and a child that is ended must not end the parent."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if number == signal.SIGINT and self.announce is not None and not self.finishing:
            self.finishing = True
            _say(self.announce())
            return
        self.finishing = self._giving_up = True
        if self.announce is None:
            raise DumpStopped(number)

    def _watch(self) -> None:
        """A thread that hears of signals from the kernel, also while the main thread computes and runs no handler."""
        self._pipe = socket.socketpair()
        for end in self._pipe:
            end.setblocking(end is self._pipe[0])
        signal.set_wakeup_fd(self._pipe[1].fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._count_down, args=(self._pipe[0],), daemon=True, name="stops").start()

    def _count_down(self, pipe: socket.socket) -> None:
        interrupts = 0
        while numbers := pipe.recv(64):
            for number in numbers:
                if number == _CLOSED:
                    return
                interrupts += number == signal.SIGINT
                if number == signal.SIGTERM or (number == signal.SIGINT and interrupts > 1):
                    self._end_after(number)

    def _end_after(self, number: int) -> None:
        seconds = SECONDS_AFTER_SIGTERM if number == signal.SIGTERM else SECONDS_AFTER_CTRL_C
        if not self._ended.wait(seconds):
            name = signal.Signals(number).name
            _say(f"alignkd: stopped by {name}; run the same command again to go on")
            os._exit(128 + number)


_entered: list[StopSignals] = []


def _forget_all() -> None:
    for stops in _entered:
        stops.forget()


os.register_at_fork(after_in_child=_forget_all)


def _say(line: str) -> None:
    """One line on stderr, past its buffer: this runs in signal handlers and beside them."""
    if line:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{line}\n".encode())
