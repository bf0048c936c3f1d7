"""Errors a user can cause; each message is one line that says what was found, what was expected and what to do."""

from pathlib import Path

from alignkd.disk.errors import AlignkdError
from alignkd.disk.next_step import next_step, reason, tried


class InputError(AlignkdError):
    """A file, value or configuration of the user's is unusable. The message is one complete line."""


class SampleError(InputError):
    """One sample of the data set is unusable; a phase may quarantine it and go on."""


class ImageError(SampleError):
    """The bytes of a sample's image are no usable image; the message does not name the file, which is the caller's."""


def unreadable(path: Path, error: OSError, what: str = "cannot be read") -> InputError:
    """The error for a file that the system does not open or read: nothing is known about its content.

    Args:
        what: could not be done.
    """
    return InputError(f"{tried(path)}: {what} ({reason(error)}); {next_step(error)}")


def one_line(text: object) -> str:
    """`text` with every run of white space (line breaks included) made one blank: fit for an error line."""
    return " ".join(str(text).split())
