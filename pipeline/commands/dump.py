"""`alignkd dump`: one worker of a dump, all of them on a Ray cluster, or the status of all of them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.heavy_imports import heavy_imports
from alignkd.pipeline.console.printing import json_option, print_json, print_note


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe with several stages.")
@click.option("--worker", metavar="RANK/COUNT", help="Which of several workers this is; a launcher sets it itself.")
@click.option("--retry-unusable", is_flag=True, help="Redo shards whose unusable samples can be read by now.")
@click.option("--ray", "on_ray", is_flag=True, help="Run the workers on a Ray cluster.")
@click.option(
    "--address", metavar="HOST:PORT", help="Ray: head of the cluster.  [default: RAY_ADDRESS, or this machine]"
)
@click.option(
    "--gpus-per-worker",
    metavar="NUMBER",
    type=click.FloatRange(0, 1),
    help="Ray: 0.5 for two workers on a GPU.  [default: 1]",
)
@click.option(
    "--cpus-per-worker",
    metavar="NUMBER",
    type=click.FloatRange(0),
    help="Ray: CPUs, and threads of torch.  [default: 1]",
)
@click.option(
    "--max-workers", metavar="NUMBER", type=click.IntRange(1), help="Ray: no more at a time.  [default: no limit]"
)
@click.option("--status", "store", metavar="STORE", help="Show the progress of the dump into STORE; change nothing.")
@json_option
@clean_errors
def dump(
    config: Path | None,
    stage: str | None,
    worker: str | None,
    retry_unusable: bool,
    on_ray: bool,
    store: str | None,
    as_json: bool,
    **ray: Any,
) -> None:
    """Phase 1: write the teacher's targets to a store.

    The teacher runs over the data set once. You can stop the command at any time and run it again: only shards that
    are not committed are computed. Ctrl-C finishes the current shard, a second Ctrl-C abandons it; SIGTERM and
    SIGHUP end the process within 10 seconds. Several workers can share a store, and --ray starts them on the
    machines of a Ray cluster: docs/running.md.

    Samples whose image is missing or damaged are listed in the store as unusable. Restore the files, then run the
    command once more with --retry-unusable: the shards of these samples are redone, one after the other.

    Example: alignkd dump run.yaml
    """
    if (config is None) == (store is None):
        raise click.UsageError("give either CONFIG, to run the dump, or --status STORE, to show its progress")
    if retry_unusable and store is not None:
        raise click.UsageError("--retry-unusable needs CONFIG; --status changes nothing")
    given = {name: value for name, value in ray.items() if value is not None}
    if given and not on_ray:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} needs --ray")
    if on_ray and (worker is not None or store is not None):
        raise click.UsageError(f"--ray starts the workers itself; leave {'--status' if store else '--worker'} out")
    if store is not None:
        _show_status(store, as_json)
        return
    assert config is not None
    _run(config, stage, worker, as_json, retry_unusable, given if on_ray else None)


def _show_status(store: str, as_json: bool) -> None:
    from alignkd.pipeline.runs.teacher.dump_status import dump_status, status_lines

    status = dump_status(store)
    if as_json:
        print_json(asdict(status))
        return
    for line in status_lines(status):
        click.echo(line)


def _run(
    config: Path, stage: str | None, worker: str | None, as_json: bool, retry_unusable: bool, ray: dict[str, Any] | None
) -> None:
    """Run one worker, or all on Ray, print the result, and exit with the signal's code if one stopped it."""
    with heavy_imports():
        from alignkd.pipeline.config.recipes import load_stage
        from alignkd.pipeline.runs.teacher.dump import run_dump, run_dump_on_ray
        from alignkd.pipeline.runs.teacher.dump_report import result_line, unusable_lines
        from alignkd.pipeline.runs.teacher.shards_report import end_if_interrupted, ending_when_abandoned
        from alignkd.teacher_dump.cluster.ray_fleet import WorkerShape

    with ending_when_abandoned():
        settings = load_stage(config, "dump", stage)
        if ray is None:
            end = run_dump(settings, worker, retry_unusable=retry_unusable)
        else:
            shape = WorkerShape(gpus=ray.get("gpus_per_worker", 1.0), cpus=ray.get("cpus_per_worker", 1.0))
            chosen = {name: ray[name] for name in ("address", "max_workers") if name in ray}
            end = run_dump_on_ray(settings, shape, retry_unusable=retry_unusable, **chosen)
    if as_json:
        print_json({"worker": str(end.worker), **asdict(end.result)})
    else:
        for line in unusable_lines(end.result, settings.store.path):
            print_note(line)
        click.echo(result_line(end.result, config))
    end_if_interrupted(end.interrupted_by)
