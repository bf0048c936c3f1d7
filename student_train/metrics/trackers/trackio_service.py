"""Trackio, in its local database, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says."""

import warnings
from typing import Any

import trackio

from alignkd.student_train.metrics.trackers.kept import NO_ROW, Kept
from alignkd.student_train.metrics.trackers.rows import Row
from alignkd.student_train.metrics.trackers.service import TrackedRun

PROJECT = "alignkd"


class TrackioService:
    """A run of trackio.

    Trackio continues runs by their name, so the name contains the identifier.
    """

    def __init__(self) -> None:
        self._run: Any = None
        self._project = PROJECT
        self._problems: list[str] = []
        # the client warns where others raise
        warnings.simplefilter("always")
        warnings.showwarning = self._note

    def open(self, run: TrackedRun, kept: Kept) -> int:
        """See `Service.open`."""
        self._project = run.project or PROJECT
        self._run = trackio.init(
            project=self._project,
            name=f"{run.name}-{kept.identifier}",
            group=run.group,
            config=run.configuration,
            resume="allow",
            embed=False,
        )
        return _last_row(self._run, kept)

    @property
    def place(self) -> str:
        """See `Service.place`."""
        return f'run {self._run.name}; to look: trackio show --project "{self._project}"'

    def send(self, row: Row) -> None:
        """See `Service.send`."""
        self._run.log(dict(row.points), step=row.step)

    def problems(self) -> list[str]:
        """See `Service.problems`."""
        found, self._problems = self._problems, []
        return found

    def close(self, *, complete: bool) -> None:
        """See `Service.close`; the client waits for at most half a minute."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()
        if self._problems:
            raise TimeoutError(self._problems[0])

    def _note(self, message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
        if str(message).startswith(("trackio", "*")) or "Could not flush" in str(message):
            self._problems.append(str(message))


def _last_row(run: Any, kept: Kept) -> int:
    """The last row: its step is known to the database or the server, the kind of row to the output folder."""
    last_step = int(run._next_step) - 1  # nothing public tells it for a database as for a server
    if last_step < 0:
        return NO_ROW
    return min(2 * last_step + 1, max(2 * last_step, kept.row))
