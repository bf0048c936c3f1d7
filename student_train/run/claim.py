"""One run per output folder, in a folder of its own: claimed before anything is written there.

The claim is a lock (flock) on `OUTPUT/run.lock`. The kernel drops it when the process ends, however it ends. The file
stays: it marks the folder as a training run's, and names the process that holds it.
"""

import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkd.storage.files.exclusive import Lock
from alignkd.storage.files.leftovers import is_dropping
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError, writing
from alignkd.student_train.output import CONFIG, METRICS, read_configuration

logger = logging.getLogger(__name__)
LOCK = "run.lock"
# What a folder may hold before its first run: the run's own configuration file, logs that a batch system opens first,
# and what file systems and desktops leave. None of it can be mistaken for a checkpoint, and no run writes such names.
BESIDE = (".yaml", ".yml", ".log", ".out", ".err")
LISTED = 3


@contextmanager
def claimed(output: Path, ranks: Ranks, *, configuration: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Hold `output` for this run while the block runs; entered by ALL ranks, the first one holds the lock.

    Args:
        configuration: kept as `OUTPUT/run.json`: at the start by a fresh run, at the end by a resumed one, when its
            settings have proved to be those of the run.

    Raises:
        TrainError: on every rank: the folder holds something else, another process trains there, or it cannot be
            written.
    """
    lock, problem = _first_rank_claims(output, configuration) if ranks.is_first else (None, None)
    try:
        if problem := ranks.from_first(problem):
            raise TrainError(problem)
        yield
        if ranks.is_first and configuration is not None:
            _keep(configuration, output)
    finally:
        if lock is not None:
            lock.release()


def check_output(output: Path) -> None:
    """Refuse a folder that holds anything but a training run, or lies in the output of another one.

    Raises:
        TrainError: it names what was found.
    """
    owner = next((folder for folder in output.resolve().parents if (folder / LOCK).exists()), None)
    if owner is not None:
        raise TrainError(
            f"output {output} lies in {owner}, the output of another training run; choose a folder outside of it"
        )
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise TrainError(f"output {output} is not a folder; choose another output")
        return
    names = sorted(path.name for path in output.iterdir())
    foreign = [name for name in names if not (name.startswith(".") or name.endswith(BESIDE) or is_dropping(name))]
    if foreign and LOCK not in names and read_configuration(output) is None:
        more = f" and {len(foreign) - LISTED} more" if len(foreign) > LISTED else ""
        raise TrainError(
            f"output {output} holds {', '.join(foreign[:LISTED])}{more}, but no training run ({LOCK}); "
            "choose a folder that is new or empty"
        )


def _first_rank_claims(output: Path, configuration: Mapping[str, Any] | None) -> tuple[Lock | None, str | None]:
    """The lock, or the error line that every rank is to raise."""
    lock = None
    try:
        check_output(output)
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
            lock = _locked(output)
            if configuration is not None and not (output / METRICS).exists():
                _keep(configuration, output)
    except TrainError as error:
        if lock is not None:
            lock.release()
        return None, str(error)
    return lock, None


def _locked(output: Path) -> Lock | None:
    """The lock, None on a file system that has none."""
    path = output / LOCK
    path.touch()
    try:
        lock = Lock.take(path)
    except OSError as error:
        logger.warning(
            "output %s: its file system carries no locks (%s), so a second training into the same folder would not be "
            "noticed; start only one",
            output,
            error.strerror,
        )
        return None
    if lock is None:
        raise TrainError(f"output {output} is in use: {_holder(path)}; stop it first, or choose another output")
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    path.write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": began}) + "\n", encoding="utf-8"
    )
    return lock


def _holder(path: Path) -> str:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return f"process {document['pid']} on host {document['host']} trains there since {document['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and is about to write its name
        return "another process trains there"


def _keep(configuration: Mapping[str, Any], output: Path) -> None:
    """The configuration with every default filled in, as JSON; whole or not at all."""
    temporary = output / f".tmp-{CONFIG}"
    with writing(output / CONFIG):
        temporary.write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
        temporary.replace(output / CONFIG)
