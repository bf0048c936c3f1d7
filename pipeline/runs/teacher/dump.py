"""Runs phase 1 of a configuration as one worker."""

from dataclasses import replace

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.runs.teacher.worker import WorkerEnd, own_device, run_as_worker
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpResult
from alignkd.teacher_dump.operation.control import DumpControl


def run_dump(config: RunConfig, worker: str | None = None, *, retry_unusable: bool = False) -> WorkerEnd[DumpResult]:
    """Run phase 1.

    Args:
        worker: `RANK/COUNT`; None takes it from the launcher's environment, or runs the only worker.
        retry_unusable: also redo shards whose unusable samples can be read by now.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """

    def run(control: DumpControl) -> DumpResult:
        job = replace(config.dump_job(), retry_unusable=retry_unusable, control=control)
        return dump(replace(job, teacher=own_device(job.teacher)))

    return run_as_worker("dump", worker, unit="sample", run=run)
