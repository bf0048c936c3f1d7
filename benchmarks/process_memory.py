"""Memory of this process and its children, without psutil: proportional set sizes as Linux counts them."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def proportional_bytes(pid: int | str = "self", *, anonymous: bool = False) -> int:
    """PSS of one process: a page that n processes share counts 1/n; 0 for one that is gone.

    Args:
        anonymous: without pages of files, which the system can take back.
    """
    key = "Pss_Anon:" if anonymous else "Pss:"
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(key)), 0)


def children_of(pid: int | str = "self") -> list[int]:
    """Process ids of the children of all threads of a process."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for found in lists for child in found.split()]


def family_bytes(pid: int | str = "self") -> int:
    """PSS of a process and all its descendants."""
    return proportional_bytes(pid) + sum(map(family_bytes, children_of(pid)))


class Peak:
    """The most that this process and its children held while the block ran: `bytes`; sampled, not counted."""

    def __init__(self, every: float = 0.02) -> None:
        self.bytes, self._every, self._done = 0, every, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, family_bytes())

    def _watch(self) -> None:
        while not self._done.wait(self._every):
            self.bytes = max(self.bytes, family_bytes())
