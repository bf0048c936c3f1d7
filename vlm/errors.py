"""Errors that users can cause; each message is one line: what was found, what was expected, what to do."""

from pathlib import Path

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason, tried


class InputError(AlignkdError):
    """A file, value or configuration from the user is unusable. The message is one complete line."""


class SampleError(InputError):
    """One sample of the data set is unusable; a phase may list it and continue."""


class ImageError(SampleError):
    """The bytes of a sample's image are not a usable image. The message leaves naming the file to the caller."""


class LabelMaskError(SampleError):
    """No token of the sample can be supervised, or it is not clear which ones."""


def unreadable(path: Path, error: OSError, what: str = "cannot be read") -> InputError:
    """The error for a file that the system cannot open or read, so that nothing is known about its content.

    Args:
        what: what failed.
    """
    return InputError(f"{tried(path)}: {what} ({reason(error)}); {next_step(error)}")


def one_line(text: object) -> str:
    """`text` with every run of white space (line breaks included) replaced by one space, for an error line."""
    return " ".join(str(text).split())
