"""`alignkd dump`: one worker of a dump, or what is known of all of them."""

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from alignkd.pipeline.console import clean_errors, json_option, print_json

if TYPE_CHECKING:
    from alignkd.teacher_dump.job import DumpResult

MAX_LISTED = 10


@click.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--stage", help="One stage of a recipe of several.")
@click.option("--worker", metavar="RANK/COUNT", help="Which of several workers this is; launchers say it themselves.")
@click.option("--retry-unusable", is_flag=True, help="Do shards again whose unusable samples can be read by now.")
@click.option("--status", "store", metavar="STORE", help="Show how far the dump into STORE is, and change nothing.")
@json_option
@clean_errors
def dump(
    config: Path | None, stage: str | None, worker: str | None, retry_unusable: bool, store: str | None, as_json: bool
) -> None:
    """Phase 1: write the teacher's targets to a store.

    The teacher runs over the data set once. Stop it any time and run it again: only shards that are not
    committed are computed. Ctrl-C finishes the shard in hand, a second one gives it up; SIGTERM and SIGHUP end
    within 10 seconds. Several workers share a store: docs/running.md.

    Samples whose image is missing or broken are listed in the store. Restore the files, then run the command once more
    with --retry-unusable: the shards of these samples are done again, one after the other.

    Example: alignkd dump run.yaml
    """
    if (config is None) == (store is None):
        raise click.UsageError("give either CONFIG, to run the dump, or --status STORE, to look at one")
    if retry_unusable and store is not None:
        raise click.UsageError("--retry-unusable belongs to CONFIG; --status changes nothing")
    if store is not None:
        show_status(store, as_json)
        return
    assert config is not None
    run_worker(config, stage, worker, as_json, retry_unusable)


def show_status(store: str, as_json: bool) -> None:
    """Print how far a dump is."""
    from alignkd.pipeline.runs.dump_status import dump_status, status_lines

    status = dump_status(store)
    if as_json:
        print_json(asdict(status))
        return
    for line in status_lines(status):
        click.echo(line)


def run_worker(config: Path, stage: str | None, worker: str | None, as_json: bool, retry_unusable: bool) -> None:
    """Run one worker, print what it did, exit as it ended."""
    from alignkd.pipeline.config.recipes import load_stage
    from alignkd.pipeline.runs.dump import run_dump
    from alignkd.teacher_dump.operation.stops import DumpStopped, end_process

    try:
        end = run_dump(load_stage(config, "dump", stage), worker, retry_unusable=retry_unusable)
    except DumpStopped as stop:
        click.echo(f"alignkd: {stop}; run the same command again to go on", err=True)
        end_process(128 + stop.signal)
    if as_json:
        print_json({"worker": str(end.worker), **asdict(end.result)})
    else:
        for line in quarantine_lines(end.result):
            click.echo(line, err=True)
        click.echo(result_line(end.result, config))
    if end.interrupted_by:
        click.echo("alignkd: stopped after the shard in hand; run the same command again to go on", err=True)
        end_process(128 + end.interrupted_by)


def quarantine_lines(result: "DumpResult") -> Iterator[str]:
    """The first few unusable samples, and how many more there are."""
    for index, sample_id, reason in result.quarantined[:MAX_LISTED]:
        yield f"quarantined: sample {sample_id!r} (index {index}): {reason}"
    if (rest := len(result.quarantined) - MAX_LISTED) > 0:
        yield f"quarantined: {rest} more, see `alignkd shards ls STORE --unusable`"


def result_line(result: "DumpResult", config: object = "CONFIG") -> str:
    """What a worker of a configuration did and what the store holds now."""
    from alignkd.teacher_dump.operation.retry import COMMAND

    done, retry = f"wrote {result.shards_written} shards", ""
    if not result.shards_written:
        done = "every shard is committed" if result.retryable else "nothing left to do"
    if result.retryable:
        command = COMMAND.replace("CONFIG", shlex.quote(str(config)))
        retry = f" ({result.retryable} of them can be tried again when their files are restored: `{command}`)"
    halved = f", {result.halved_batches} batches halved for lack of memory" if result.halved_batches else ""
    return (
        f"{done}: {result.num_records} of {result.num_samples} samples in the store, "
        f"{len(result.quarantined)} quarantined{retry}{halved}, {result.seconds:.1f} s"
    )
