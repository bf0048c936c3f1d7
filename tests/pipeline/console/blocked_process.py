"""Runs `alignkd`, where a read or write of files does not return, as if their server were gone.

Arguments: which one (see BLOCKS), and those of `alignkd`. Prints `blocked` when a thread is inside it; the watches that
end such a process do so after a fraction of a second.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

from alignkd.pipeline.cli import main
from alignkd.pipeline.console import interrupts

SECONDS = 0.3


def never_returns(*arguments: object, **options: object) -> NoReturn:
    never, _unused = os.pipe()
    os.write(1, b"blocked\n")
    os.read(never, 1)
    raise AssertionError("nobody writes to this pipe")


def block_images() -> None:
    from alignkd.teacher_dump import preparation

    preparation.sample_files = never_returns


def block_commits() -> None:
    """What is forced to disk once the writer is there, which writes the manifest."""
    from alignkd.storage import StoreWriter
    from alignkd.storage.files import exclusive

    begin: Callable[..., None] = StoreWriter.__init__

    def begun(*arguments: object, **options: object) -> None:
        begin(*arguments, **options)
        exclusive.fsync_path = never_returns

    StoreWriter.__init__ = begun  # type: ignore[method-assign]


def block_verification() -> None:
    from alignkd.storage.files import local

    local.file_sha256 = never_returns


BLOCKS = {"images": block_images, "commits": block_commits, "verification": block_verification}

if __name__ == "__main__":
    from alignkd.teacher_dump.operation import stops

    stops.SECONDS_AFTER_SIGTERM = stops.SECONDS_AFTER_CTRL_C = interrupts.SECONDS_AFTER_CTRL_C = SECONDS
    tempfile.tempdir = None  # TMPDIR may be another one than at the import
    BLOCKS[sys.argv.pop(1)]()
    main(sys.argv[1:])
