"""What `alignkd dump` prints at the end of a worker: unusable samples, and one line of result."""

import shlex
from collections.abc import Iterator
from pathlib import Path

from alignkd.pipeline.console.printing import format_count
from alignkd.pipeline.runs.teacher.shards_report import listed_unusable
from alignkd.storage.places import load_manifest
from alignkd.teacher_dump.job import DumpResult
from alignkd.teacher_dump.operation.retry import COMMAND


def unusable_lines(result: DumpResult, store: Path | str) -> Iterator[str]:
    """The first few unusable samples, and how many more there are.

    Args:
        store: the store of the dump, which names the data sets.
    """
    if not result.quarantined:
        return iter(())
    where = load_manifest(store).shown_index
    return listed_unusable(result.quarantined, more="see `alignkd shards ls STORE --unusable`", where=where)


def result_line(result: DumpResult, config: object = "CONFIG") -> str:
    """What a worker of the configuration `config` did, and what the store contains now."""
    done, retry = f"wrote {format_count(result.shards_written, 'shard')}", ""
    if not result.shards_written:
        done = "every shard is committed" if result.retryable else "nothing left to do"
    if result.retryable:
        command = COMMAND.replace("CONFIG", shlex.quote(str(config)))
        retry = f" ({result.retryable} of them can be retried after their files are restored: `{command}`)"
    halved = f", {result.halved_batches} batches halved after running out of memory" if result.halved_batches else ""
    return (
        f"{done}: {result.num_records} of {format_count(result.num_samples, 'sample')} in the store, "
        f"{len(result.quarantined)} unusable{retry}{halved}, {result.seconds:.1f} s"
    )
