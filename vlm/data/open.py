"""Open a data set of any supported format."""

from collections.abc import Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path

from alignkd.vlm.data.formats.entry_file import EntryFile
from alignkd.vlm.data.formats.paired import PairedFile
from alignkd.vlm.data.formats.paths import data_files
from alignkd.vlm.data.formats.recognise import kind_of_file, open_file
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet, ReadProgress
from alignkd.vlm.errors import InputError


def open_data(data: DataSet, *, progress: ReadProgress | None = None) -> EntrySource:
    """The samples of one data set.

    Args:
        progress: called while files are read through.

    Raises:
        InputError: no such file, none of a supported format, or files of several formats.
    """
    files = {path: kind_of_file(path) for path in data_files(data.path)}
    if len(set(files.values())) > 1:
        first = {kind: path for path, kind in reversed(files.items())}
        shown = ", ".join(f"{kind}: {path.name}" for kind, path in sorted(first.items()))
        raise InputError(f"{data.path}: files of several kinds ({shown}); give a path or pattern for one")
    opened = _opened(files, progress)
    return EntrySource(data, [PairedFile(file) for file in opened] if data.pairs else opened)


def load_samples(path: Path, images: Path | None = None) -> list[Sample]:
    """All samples of a small data set at once.

    Args:
        images: folder to which image paths are relative.

    Raises:
        InputError: as `open_data`.
    """
    return list(open_data(DataSet(path=path, images=images)))


def _opened(files: Mapping[Path, str], progress: ReadProgress | None) -> list[EntryFile]:
    sizes = [path.stat().st_size for path in files]
    before = [0, *accumulate(sizes)]
    opened: list[EntryFile] = []
    for number, (path, kind) in enumerate(files.items()):
        report = None if progress is None else partial(_report, progress, before[number], before[-1])
        opened.append(open_file(path, kind, report))
        if report is not None and kind == "parquet":  # only its end is read
            report(sizes[number])
    return opened


def _report(progress: ReadProgress, before: int, total: int, done: int) -> None:
    progress(before + done, total)
