"""Runs phase 1 of a configuration as one worker, or by the workers of a Ray cluster."""

from dataclasses import replace

from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.console.printing import say
from alignkd.pipeline.runs.teacher.worker import WorkerEnd, own_device, run_as_worker
from alignkd.teacher_dump.cluster.pool import dump_on
from alignkd.teacher_dump.cluster.ray_fleet import WorkerShape, ray_fleet
from alignkd.teacher_dump.dump import dump
from alignkd.teacher_dump.job import DumpResult
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.workers import Worker


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


def run_dump_on_ray(
    config: RunConfig,
    shape: WorkerShape,
    *,
    address: str | None = None,
    max_workers: int | None = None,
    retry_unusable: bool = False,
) -> WorkerEnd[DumpResult]:
    """Run phase 1 by the workers of a Ray cluster; this process only assigns the shards.

    Args:
        shape: what a worker occupies of a machine.
        address: as of `ray_fleet`.
        max_workers: as of `dump_on`.
        retry_unusable: as of `run_dump`.

    Raises:
        DumpStopped: a signal made it abandon the current shards.
        InputError: as `ray_fleet` and `dump_on`.
    """
    job = replace(config.dump_job(), retry_unusable=retry_unusable)
    with ray_fleet(job, shape, address) as fleet:
        say(f"Ray cluster at {fleet.cluster()}")
        return run_as_worker(
            "dump",
            str(Worker()),
            unit="sample",
            run=lambda control: dump_on(fleet, replace(job, control=control), max_workers=max_workers),
        )
