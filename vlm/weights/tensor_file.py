"""Safetensors files of torch tensors: written whole, with the mode of the umask; errors of the system keep their errno.

The only module that calls `safetensors.torch.save_file`, which creates files of mode 0600 whatever the umask is and
converts errors of the operating system to text.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignkd.disk.opening import check_readable
from alignkd.disk.whole_file import written_whole

_ERRNO = re.compile(r"\(os error (\d+)\)")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole or not at all, flushed to the disk; an existing one is replaced.

    Args:
        tensors: contiguous, on any device.

    Raises:
        OSError: the file cannot be written.
    """
    with written_whole(path) as aside, system_errors(path):
        save_file(dict(tensors), aside, metadata=None if metadata is None else dict(metadata))


@contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Convert errors of safetensors that name an error of the system to an OSError with its number and `path`."""
    try:
        yield
    except SafetensorError as error:
        raise _system_error(error, path) from error


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """`safetensors.safe_open` for torch, after a check that the file can be opened.

    Raises:
        OSError: the file cannot be opened, with errno: safetensors reports "No such file" also for missing permissions.
        SafetensorError: the file is not a valid safetensors file.
    """
    check_readable(path)
    with safe_open(path, "pt") as file:
        yield file


def _system_error(error: SafetensorError, path: Path) -> Exception:
    """The OSError whose number is in the text of `error`; `error` itself without a number."""
    found = _ERRNO.search(str(error))
    return error if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(path))
