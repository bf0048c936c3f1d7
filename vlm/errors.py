"""Errors a user can cause; each message is one line that says what was found, what was expected and what to do."""

from pathlib import Path


class InputError(ValueError):
    """A file, value or configuration of the user's is unusable. The message is one complete line."""


class SampleError(InputError):
    """One sample of the data set is unusable; a phase may quarantine it and go on."""


class ImageError(SampleError):
    """The bytes of a sample's image are no usable image; the message does not name the file, which is the caller's."""


def one_line(text: object) -> str:
    """`text` with every run of white space (line breaks included) made one blank: fit for an error line."""
    return " ".join(str(text).split())


def tried(path: Path | str) -> str:
    """A path for a message that it leads to nothing: beside a relative one the absolute path that was tried."""
    return str(path) if Path(path).is_absolute() else f"{path} (in full {Path(path).absolute()})"
