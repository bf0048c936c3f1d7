"""Where a dump found its inputs: paths on the machine of the dump, which decide nothing of the store.

A store may come from another machine or from a stranger. Whoever uses such a path must check what it finds there: the
sha256 of an image file against that of the record, the hash of a checkpoint's tower against that of the stem.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from alignkd.storage.schema.sources import MAX_SAMPLES

MAX_FOLDERS = 1 << 12
MAX_PATH = 1 << 12
# letters of all folders together: a manifest has room for much else
MAX_LETTERS = 1 << 20


def _checked(path: str) -> str:
    if not path.isprintable() or not os.path.isabs(path):  # noqa: PTH117
        raise ValueError("is not an absolute path of printable letters")
    return path


StoredPath = Annotated[str, StringConstraints(max_length=MAX_PATH), AfterValidator(_checked)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageFolder(_Model):
    """The folder of the images of consecutive samples.

    Attributes:
        first_sample: index of the first; the next folder's first sample ends them.
        folder: absolute path; None: the samples have no folder.
    """

    first_sample: int = Field(ge=0, lt=MAX_SAMPLES)
    folder: StoredPath | None = None


class ReadFrom(_Model):
    """Where the inputs were.

    Attributes:
        checkpoint: folder of the teacher, an absolute path; None: not known.
        vision_config: folder with the configuration of the teacher's tower, if it was given.
        processor: which image processor was asked for, if it was not the default.
        images: folders of the images, by ascending first sample.
    """

    checkpoint: StoredPath | None = None
    vision_config: StoredPath | None = None
    processor: Annotated[str, StringConstraints(pattern="^[a-z]{1,40}$")] | None = None
    images: tuple[ImageFolder, ...] = Field(default=(), max_length=MAX_FOLDERS)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        firsts = [entry.first_sample for entry in self.images]
        if firsts != sorted(set(firsts)):
            raise ValueError("read_from.images are not in the order of their first samples")
        return self

    def image_folder(self, index: int) -> Path | None:
        """The folder of the images of a sample; None if it is not known.

        Args:
            index: index of the sample in the data set.
        """
        place = bisect_right([entry.first_sample for entry in self.images], index) - 1
        folder = self.images[place].folder if place >= 0 else None
        return None if folder is None else Path(folder)


def image_folders(folders: Iterable[tuple[int, Path | str | None]]) -> tuple[ImageFolder, ...]:
    """The folders of a list of data; neighbours with the same folder are joined.

    Args:
        folders: index of the first sample and folder of each data set, ascending.

    Returns:
        An empty tuple if they are more than a manifest holds.
    """
    found: list[ImageFolder] = []
    for first_sample, folder in folders:
        entry = ImageFolder(first_sample=first_sample, folder=None if folder is None else absolute(folder))
        if not found or found[-1].folder != entry.folder:
            found.append(entry)
    letters = sum(len(entry.folder or "") for entry in found)
    return tuple(found) if len(found) <= MAX_FOLDERS and letters <= MAX_LETTERS else ()


def absolute(path: Path | str) -> str | None:
    """An absolute path as a manifest holds it; None where it cannot: too long, or no text in UTF-8."""
    found = os.path.abspath(path)  # noqa: PTH100 - links stay as the user wrote them
    return found if found.isprintable() and len(found) <= MAX_PATH else None


def grown_read_from(stored: ReadFrom | None, asked: ReadFrom | None, num_samples: int) -> ReadFrom | None:
    """What a store that grows keeps: its own paths, and for the samples that are added the new ones.

    Args:
        num_samples: samples that the store has before it grows.
    """
    if asked is None:
        return stored
    added = [(max(entry.first_sample, num_samples), entry.folder) for entry in _from(asked.images, num_samples)]
    own = [(entry.first_sample, entry.folder) for entry in (() if stored is None else stored.images)]
    return (stored or asked).model_copy(update={"images": image_folders([*own, *added])})


def joined_read_from(parts: Iterable[tuple[int, ReadFrom | None]]) -> ReadFrom | None:
    """The paths of several stores of one teacher, one after the other; the teacher's are those of the first.

    Args:
        parts: index of the first sample of each store, ascending, and its paths.
    """
    given = list(parts)
    known = [read_from for _, read_from in given if read_from is not None]
    if not known:
        return None
    folders: list[tuple[int, str | None]] = []
    for start, read_from in given:
        own = () if read_from is None else read_from.images
        if not own or own[0].first_sample > 0:
            folders.append((start, None))
        folders += [(start + entry.first_sample, entry.folder) for entry in own]
    return known[0].model_copy(update={"images": image_folders(folders)})


def _from(images: tuple[ImageFolder, ...], start: int) -> tuple[ImageFolder, ...]:
    """The folders of the samples from `start` on."""
    firsts = [entry.first_sample for entry in images]
    return images[max(0, bisect_right(firsts, start) - 1) :]
