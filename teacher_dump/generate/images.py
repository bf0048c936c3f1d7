"""The paths of images in the entries that a generation writes."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.vlm.data.data_list import DataList
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ImageRoot:
    """The folder to which the image paths of all entries are relative.

    Attributes:
        folder: the image folder of the data sets, or the folder that holds all of their image folders; None if they
            have none.
    """

    folder: Path | None

    @classmethod
    def of(cls, sets: Sequence[DataSet]) -> "ImageRoot":
        """The folder of some data sets."""
        folders = list(dict.fromkeys(data.images for data in sets if data.images is not None))
        if len(folders) < 2:
            return cls(folder=folders[0] if folders else None)
        return cls(folder=Path(os.path.commonpath([folder.absolute() for folder in folders])))

    def names(self, sample: Sample) -> list[str]:
        """The paths of a sample's images, relative to the folder."""
        if self.folder is None or sample.folder is None or sample.folder == self.folder:
            return list(sample.images)
        below = sample.folder.absolute().relative_to(self.folder)
        return [str(below / name) for name in sample.images]


def check_images_are_files(samples: DataList) -> None:
    """Refuse data files that hold images: the entries of answers name image files.

    Raises:
        InputError: names the data set.
    """
    for source in samples.sources:
        if source.holds_images:
            raise InputError(
                f"{source.data.path}: holds the images itself, but answers name image files; write them to a folder by "
                "`alignkd data convert --images-out` and take its output"
            )
