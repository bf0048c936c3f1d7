"""Errors a user can cause; each is one line that names both values and the next step."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class TrainError(ValueError):
    """A training run that cannot start or go on as asked."""


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into a TrainError that names `target`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainError(f"{target}: cannot be written ({error}); free some space and run again") from error
