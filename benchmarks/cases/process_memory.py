"""Memory of this process and its children, without psutil: proportional set sizes as Linux counts them."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self


def proportional_bytes(pid: int | str = "self", *, anonymous: bool = False) -> int:
    """PSS of one process, in which a page of n processes counts 1/n; 0 if the process has ended.

    Args:
        anonymous: do not count pages of files, which the system can reclaim.
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
    """Peak PSS of this process and its children during a block, in `bytes`; sampling may miss short peaks."""

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
