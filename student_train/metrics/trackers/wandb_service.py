"""Weights & Biases. The client's environment variables (WANDB_MODE, WANDB_PROJECT, ...) have priority."""

import os
from pathlib import Path
from typing import Any

import wandb

from alignkd.student_train.metrics.trackers.kept import Kept
from alignkd.student_train.metrics.trackers.rows import Row
from alignkd.student_train.metrics.trackers.service import TrackedRun

PROJECT = "alignkd"
STEP = "step"
SECONDS = 10.0  # to deliver the last rows; less than the training waits (`follower.py`)


class WandbService:
    """A run of wandb, online or offline.

    The client counts rows by itself and refuses a row that it already has. Its row number is ours, and the horizontal
    axis of every figure is the figure `step`.
    """

    def __init__(self) -> None:
        self._run: Any = None

    def open(self, run: TrackedRun, kept: Kept) -> int:
        """See `Service.open`."""
        given = os.environ
        settings: dict[str, Any] = {"finish_timeout": SECONDS, "finish_timeout_raises": True}
        settings |= {} if "WANDB_SILENT" in given else {"silent": True}
        if "WANDB_CONSOLE" not in given:  # this process has no output of its own
            settings["console"] = "off"
        self._run = wandb.init(
            id=given.get("WANDB_RUN_ID", kept.identifier),
            resume=None if "WANDB_RESUME" in given else "allow",
            project=run.project or given.get("WANDB_PROJECT", PROJECT),
            name=given.get("WANDB_NAME", run.name),
            dir=given.get("WANDB_DIR", str(run.output)),
            tags=[*dict.fromkeys((*run.tags, *filter(None, given.get("WANDB_TAGS", "").split(","))))],
            config=run.configuration,
            settings=wandb.Settings(**settings),
        )
        self._run.define_metric("*", step_metric=STEP)
        # only a server knows what was delivered
        return kept.row if self._run.offline or self._run.disabled else int(self._run.starting_step) - 1

    @property
    def place(self) -> str:
        """See `Service.place`."""
        if self._run.disabled:
            return "disabled by WANDB_MODE"
        if self._run.offline:
            folder = Path(self._run.dir).parents[1]
            return f"offline; to upload: wandb sync {folder}/offline-run-*-{self._run.id}"
        return str(self._run.url)

    def send(self, row: Row) -> None:
        """See `Service.send`."""
        self._run.log({STEP: row.step, **row.points}, step=row.number)
        if row.best is not None:
            self._run.summary.update(dict(zip(("validation/best_step", "validation/best"), row.best, strict=True)))

    def problems(self) -> list[str]:
        """None: the client keeps what it cannot deliver, and delivers it later."""
        return []

    def close(self, *, complete: bool) -> None:
        """See `Service.close`; what is not delivered is in the folder of the run."""
        if self._run is None:
            return
        folder, run, self._run = Path(self._run.dir).parent, self._run, None
        try:
            run.finish(exit_code=0 if complete else 1)
        except TimeoutError as error:
            raise TimeoutError(f"not everything is uploaded; run `wandb sync {folder}`") from error
