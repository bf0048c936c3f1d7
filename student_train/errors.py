"""Errors that a user can cause; each is one line that names both values and the next step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason


class TrainError(AlignkdError):
    """A training run cannot start or continue as requested."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder and the like into a TrainError that names `target` and the next step."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename and str(error.filename) != str(target) else ""
        raise TrainError(f"{target}: cannot be written ({reason(error)}{where}); {next_step(error)}") from error
    except SafetensorError as error:  # the cause is not the file system
        raise TrainError(f"{target}: cannot be written ({' '.join(str(error).split())}); report this") from error


def unreadable(what: object, error: OSError) -> TrainError:
    """The error for a file that the system cannot open or read; its content is unknown."""
    return TrainError(f"{what}: cannot be read ({reason(error)}); {next_step(error)}")
