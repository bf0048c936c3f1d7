"""Runs phase 1 of a configuration as one worker."""

import os
from dataclasses import dataclass, replace

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.runs.worker import own_device, worker_control
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpResult
from alignkd.teacher_dump.operation.workers import Worker, worker_of


@dataclass(frozen=True, kw_only=True)
class DumpEnd:
    """How a worker's run ended.

    Attributes:
        worker: rank and count of the worker.
        result: what it wrote.
        interrupted_by: the signal after which it started no other shard; 0 without a signal.
    """

    worker: Worker
    result: DumpResult
    interrupted_by: int


def run_dump(config: RunConfig, worker: str | None = None, *, retry_unusable: bool = False) -> DumpEnd:
    """Run phase 1.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        retry_unusable: also redo shards whose unusable samples can be read by now.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    which = worker_of(os.environ, worker)
    job = replace(config.dump_job(), retry_unusable=retry_unusable)
    with worker_control("dump", which, unit="sample") as control:
        result = dump(replace(job, teacher=own_device(job.teacher), control=control))
        return DumpEnd(worker=which, result=result, interrupted_by=control.stops.received)
