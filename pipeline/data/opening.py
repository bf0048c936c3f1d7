"""Opens data sets for the commands of `alignkd data`."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from alignkd.disk.next_step import tried
from alignkd.pipeline.data.reading_bar import ReadingBar
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.source import Answers, DataSet
from alignkd.vlm.errors import InputError


def data_sets(
    paths: Sequence[Path],
    *,
    images: Path | None,
    roles: Mapping[str, str],
    system: str | None,
    answers: Answers = "given",
    pairs: bool = False,
) -> tuple[DataSet, ...]:
    """Data sets that are read alike.

    Raises:
        InputError: no such image folder.
    """
    if images is not None and not images.is_dir():
        raise InputError(f"{tried(images)}: no such image folder; give the folder of the image paths")
    settings = {"images": images, "roles": roles, "system": system, "answers": answers, "pairs": pairs}
    return tuple(DataSet(path=path, **settings) for path in paths)  # type: ignore[arg-type]  # as named above


def open_with_progress(data: DataSet) -> EntrySource:
    """Open a data set, with a progress bar on a terminal."""
    return open_data(data, progress=ReadingBar())
