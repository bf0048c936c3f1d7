"""Ctrl-C and SIGTERM end a run after the step in hand, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is remembered; a second one ends the process at once.

    Attributes:
        received: number of the signal, 0 while there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
