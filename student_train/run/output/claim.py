"""One run per output folder: the folder is claimed before anything is written there.

The claim is a lock (flock) on `OUTPUT/run.lock`. The kernel releases it when the process ends, also after a crash. The
file stays: it marks the folder as the output of a training run, and names the process that holds the lock.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.storage.files.exclusive import Lock
from alignkd.storage.files.leftovers import is_dropping
from alignkd.student_train.distributed.ranks import Ranks
from alignkd.student_train.errors import TrainError, writing
from alignkd.student_train.output import CONFIG, METRICS, read_configuration
from alignkd.student_train.run.output.lock import LOCK, described_holder

logger = logging.getLogger(__name__)
# `alignkd train --status` holds the lock for microseconds, so a busy lock is tried again
TRIES, SECONDS_BETWEEN_TRIES = 5, 0.05
# Attributes of a network file system may be some seconds old.
TRIES_TO_SEE, SECONDS_BETWEEN_TRIES_TO_SEE = 20, 0.5
# What a folder may contain before its first run: the run's own configuration file, logs that a batch system opens
# first, and files of file systems and desktops. None can be mistaken for a checkpoint, and no run writes such names.
ALLOWED = (".yaml", ".yml", ".log", ".out", ".err")
LISTED = 3


@contextmanager
def claimed(output: Path, ranks: Ranks, *, configuration: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Hold `output` for this run while the block runs; entered by ALL ranks, the first one holds the lock.

    Args:
        configuration: kept as `OUTPUT/run.json`. A new run writes it at the start; a resumed run at the end, after its
            settings were compared with those of the run.

    Raises:
        TrainError: on every rank: the folder contains something else, another process trains there, or the folder
            cannot be written.
    """
    lock, problem = _first_rank_claims(output, configuration) if ranks.is_first else (None, None)
    try:
        if problem := ranks.from_first(problem):
            raise TrainError(problem)
        _check_is_shared(output, ranks)
        yield
        if ranks.is_first and configuration is not None:
            _keep(configuration, output)
    finally:
        if lock is not None:
            lock.release()


def check_output(output: Path) -> None:
    """Refuse a folder that contains anything but a training run, or is inside the output of another run.

    Raises:
        TrainError: the message names what was found.
    """
    owner = next((folder for folder in output.resolve().parents if (folder / LOCK).exists()), None)
    if owner is not None:
        raise TrainError(
            f"output {output} is inside {owner}, the output of another training run; choose a folder outside of it"
        )
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise TrainError(f"output {output} is not a folder; choose another output")
        return
    names = sorted(path.name for path in output.iterdir())
    foreign = [name for name in names if not (name.startswith(".") or name.endswith(ALLOWED) or is_dropping(name))]
    if foreign and LOCK not in names and read_configuration(output) is None:
        more = f" and {len(foreign) - LISTED} more" if len(foreign) > LISTED else ""
        raise TrainError(
            f"output {output} contains {', '.join(foreign[:LISTED])}{more}, but no training run ({LOCK}); "
            "choose a new or empty folder"
        )


def _check_is_shared(output: Path, ranks: Ranks) -> None:
    """Refuse an output that is another folder on another machine: only the first rank writes, but all resume from it.

    Raises:
        TrainError: on every rank.
    """
    if ranks.world_size == 1:
        return
    mark = ranks.from_first(_mark(output) if ranks.is_first else None)
    for _ in range(TRIES_TO_SEE):
        if seen := _mark(output) == mark:
            break
        time.sleep(SECONDS_BETWEEN_TRIES_TO_SEE)
    found = ranks.from_all((socket.gethostname(), str(output.absolute()), seen))
    for rank, (host, path, sees) in enumerate(found):
        if not sees:
            raise TrainError(
                f"train.output {path}: rank {rank} on host {host} does not see there what rank 0 on host {found[0][0]} "
                f"has written to {found[0][1]}; give all of them the same folder, on a file system that all machines "
                "share"
            )


def _mark(output: Path) -> str | None:
    """Content of the lock file, which names the process that holds it and since when; None without the file."""
    try:
        return (output / LOCK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _first_rank_claims(output: Path, configuration: Mapping[str, Any] | None) -> tuple[Lock | None, str | None]:
    """The lock, or the error line that every rank must raise."""
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
    """The lock; None on a file system without locks."""
    path = output / LOCK
    path.touch()
    lock: Lock | None = None
    try:
        lock = _lock_of(path)
    except OSError as error:
        logger.warning(
            "output %s: its file system has no locks (%s), so a second training into the same folder would not be "
            "noticed; start only one",
            output,
            error.strerror,
        )
    else:
        if lock is None:
            raise TrainError(
                f"output {output} is in use: {described_holder(output)}; stop it first, or choose another output"
            )
    began = datetime.now().astimezone().isoformat(timespec="seconds")
    path.write_text(
        json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": began}) + "\n", encoding="utf-8"
    )
    return lock


def _lock_of(path: Path) -> Lock | None:
    for _ in range(TRIES):
        if (lock := Lock.take(path)) is not None:
            return lock
        time.sleep(SECONDS_BETWEEN_TRIES)
    return None


def _keep(configuration: Mapping[str, Any], output: Path) -> None:
    """Write the configuration with every default filled in, as JSON."""
    with writing(output / CONFIG):
        write_whole(output / CONFIG, json.dumps(configuration, indent=2) + "\n")
