"""A progress bar for each data file that is read through; nothing is shown if stderr is not a terminal."""

from typing import Any

from tqdm import tqdm


class ReadingBar:
    """Call it with the bytes read so far and the bytes in all; see `alignkd.vlm.data.source.ReadProgress`."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None or done < self._bar.n:  # another file
            self._close()
            # disable=None: no bar if stderr is not a terminal
            self._bar = tqdm(desc="read data", unit="B", unit_scale=True, total=total, leave=False, disable=None)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = None
