"""A folder of images that are named by the sha256 of their content, so that no image is written twice."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignkd.vlm.data.entries.images import extension_of

_PART = ".part-"
# an image, or what a killed process left
_NAME = re.compile(rf"[0-9a-f]{{64}}\.[a-z0-9]+|{re.escape(_PART)}.*")


def is_image_folder(folder: Path) -> bool:
    """Whether a folder holds nothing but images under such names."""
    return all(_NAME.fullmatch(path.name) for path in folder.iterdir())


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Give errors of the system a file name: those of an open file, such as a full disk, have none."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


class ImageFolder:
    """The folder, made with its first image.

    Attributes:
        num_written: images that were written.
        num_there: images that were there already, counted once for each time that they are added.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.num_written, self.num_there = 0, 0

    def add(self, content: bytes) -> str:
        """Write an image, unless it is there, and return its name. It is there as a whole or not at all."""
        name = f"{hashlib.sha256(content).hexdigest()}.{extension_of(content) or 'bin'}"
        path = self._folder / name
        if path.is_file() and path.stat().st_size == len(content):
            self.num_there += 1
            return name
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = self._folder / f"{_PART}{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            with named_errors(path):
                aside.write_bytes(content)
                aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        self.num_written += 1
        return name

    def finish(self) -> None:
        """Force the images to disk, all at once: an fsync for each of a million images would take an hour."""
        if self.num_written:
            os.sync()
