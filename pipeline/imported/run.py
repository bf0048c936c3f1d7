"""Runs an import as a process: signals and a progress bar."""

from dataclasses import replace

from tqdm import tqdm

from alignkd.pipeline.console.printing import say
from alignkd.teacher_dump.imported.job import ImportJob, ImportResult
from alignkd.teacher_dump.imported.run import import_targets
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.status import WorkerStatus
from alignkd.teacher_dump.operation.stops import DumpStopSignals


def run_import(job: ImportJob) -> tuple[ImportResult, int]:
    """Run an import with signals and a progress bar; also the signal after which it started no other shard.

    Raises:
        DumpStopped: a signal made it abandon the current shard.
    """
    # disable=None: no bar if stderr is not a terminal
    with (
        DumpStopSignals() as stops,
        tqdm(desc="read", unit="row", disable=None) as rows,
        tqdm(desc="import", unit="sample", disable=None) as samples,
    ):

        def reading(done: int, total: int) -> None:
            rows.total = total
            rows.update(done - rows.n)

        def progress(status: WorkerStatus) -> None:
            samples.total = status.total
            samples.set_postfix_str(f"{status.errors} unusable" if status.errors else "", refresh=False)
            samples.update(status.samples - samples.n)

        def notice(text: str) -> None:
            with tqdm.external_write_mode():
                say(text)

        control = DumpControl(stops=stops, progress=progress, notice=notice, visible=True)
        result = import_targets(replace(job, control=control, reading=reading))
        return result, stops.received
