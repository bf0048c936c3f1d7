"""Writes the samples of data sets as JSON lines, and counts what cannot be written."""

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from alignkd.disk.whole_file import written_whole
from alignkd.pipeline.data.convert.image_folder import ImageFolder, named_errors
from alignkd.pipeline.data.filter.filters import Filters, SampleFilter
from alignkd.pipeline.data.opening import open_with_progress
from alignkd.pipeline.data.stats.figures import Dropped
from alignkd.pipeline.data.stats.notes import Notes, most_frequent
from alignkd.pipeline.data.stats.scan import held, source_of
from alignkd.pipeline.data.stats.table import CONVERSATION, KINDS, MALFORMED, MISSING, OUTSIDE
from alignkd.vlm.data.formats.source import EntrySource
from alignkd.vlm.data.images import MissingImageError, read_image_bytes
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turn_checks import check_turns
from alignkd.vlm.data.written_entry import Dialect, written_entry
from alignkd.vlm.errors import InputError, SampleError, one_line


@dataclass(frozen=True, kw_only=True)
class ConvertJob:
    """What to write, and where.

    Attributes:
        data: the data sets, one after the other.
        out: file of JSON lines; gzipped if its name ends in `.gz`.
        dialect: of the entries.
        images_out: folder to which all images are written; None: entries name the images where they are.
        filters: samples whose answers do not pass are not written.
        listing: file to write with every sample that is not written; None for none.
    """

    data: tuple[DataSet, ...]
    out: Path
    dialect: Dialect = "llava"
    images_out: Path | None = None
    filters: Filters = field(default_factory=Filters)
    listing: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Converted:
    """What was written.

    Attributes:
        samples: samples that were read.
        written: samples that were written; all others are in `unusable` or `filtered`.
        unusable: reason -> number of samples that were not written.
        filtered: option of a filter -> number of usable samples that it dropped, also 0; each sample counts once.
        keys_not_read: key of entries, or column, that was not read -> number of samples that have it.
        images_written: images that were written to the folder.
        images_there: images that were in the folder already, each time they were met.
        images_referenced: images of entries that stay where they are, each time they were met.
    """

    out: str
    samples: int
    written: int
    unusable: dict[str, int]
    filtered: dict[str, int]
    keys_not_read: dict[str, int]
    images_written: int
    images_there: int
    images_referenced: int


class _UnusableError(Exception):
    """A sample that is not written: its kind (of `KINDS`, or the option of a filter) and the reason."""

    def __init__(self, kind: str, reason: object) -> None:
        super().__init__(str(reason))
        self.kind = kind


def convert(job: ConvertJob) -> Converted:
    """Write the samples. The file, the listing and each image are there as a whole or not at all.

    Raises:
        InputError: a data set cannot be read; images without a folder to write them to; no sample is usable or passes
            the filters; filters of models' answers for data without any.
    """
    sources = [open_with_progress(data) for data in job.data]
    _check_images(job, sources)
    writer = _Writer(job)
    with ExitStack() as stack:
        aside = stack.enter_context(written_whole(job.out))
        stream = stack.enter_context(_lines(aside, job.out))
        listing = _listing(job, stack)
        doing = "filter" if job.filters.given else "convert"
        with tqdm(total=sum(map(len, sources)), desc=doing, unit="sample", disable=None) as bar:
            for source in sources:
                for index in range(len(source)):
                    writer.write(source, index, stream, listing)
                    bar.update()
                writer.notes.keys.update(source.not_read)
        writer.check_filters()
        if not writer.written:
            raise InputError(_nothing(writer))
        if writer.images is not None:
            writer.images.finish()
    return writer.result()


class _Writer:
    """Writes samples and counts."""

    def __init__(self, job: ConvertJob) -> None:
        self._job = job
        self.images = None if job.images_out is None else ImageFolder(job.images_out)
        self.filter = SampleFilter(job.filters)
        self.filtered = dict.fromkeys(job.filters.given, 0)
        self.notes = Notes()
        self.samples, self.written, self.referenced = 0, 0, 0

    def write(self, source: EntrySource, index: int, stream: "_Lines", listing: "_Lines | None") -> None:
        """Write one sample, or list it."""
        sample, entry = source.sample_and_entry(index)
        self.samples += 1
        reason = ""
        try:
            self._check(sample)
            found = written_entry(sample, self._images(source, sample), self._job.dialect)
        except _UnusableError as error:
            if error.kind in self.filtered:
                self.filtered[error.kind] += 1
            else:
                reason = str(error)
            if listing is not None:
                listing.write(asdict(_dropped(source, sample, error)))
        else:
            stream.write(found)
            self.filter.keep(sample)
            self.written += 1
        self.notes.note(entry, sample, reason)

    def check_filters(self) -> None:
        """Refuse filters of models' answers where there is none.

        Raises:
            InputError: names the data.
        """
        if (options := self._job.filters.of_models) and not self.filter.generated:
            raise InputError(
                f"{self.paths}: no answer is marked as written by a model, so {' and '.join(options)} would drop "
                "nothing; give what `alignkd generate` wrote, or filter by characters"
            )

    def result(self) -> Converted:
        """The counts so far."""
        return Converted(
            out=str(self._job.out),
            samples=self.samples,
            written=self.written,
            unusable=most_frequent(self.notes.reasons),
            filtered=self.filtered,
            keys_not_read=most_frequent(self.notes.keys),
            images_written=self.images.num_written if self.images else 0,
            images_there=self.images.num_there if self.images else 0,
            images_referenced=self.referenced,
        )

    @property
    def paths(self) -> str:
        """The data sets, for messages."""
        return ", ".join(str(data.path) for data in self._job.data)

    def _check(self, sample: Sample) -> None:
        """Refuse a sample whose turns cannot be written, or do not pass the filters."""
        if sample.problem is not None and not sample.unanswered:
            raise _UnusableError(KINDS[MALFORMED], sample.problem)
        try:
            check_turns(sample.turns, num_images=len(sample.images))
        except SampleError as error:
            raise _UnusableError(KINDS[CONVERSATION], error) from error
        if (drop := self.filter.drop(sample)) is not None:
            raise _UnusableError(*drop)

    def _images(self, source: EntrySource, sample: Sample) -> Sequence[str]:
        """The paths of the images of a usable sample; they are written where there is a folder for them."""
        if self.images is None:
            if sample.contents:
                raise InputError(_needs_folder(source.where(sample.index)))
            self.referenced += len(sample.images)
            return sample.images
        contents = [_content(source, sample, own) for own in range(len(sample.images))]
        return [self.images.add(content) for content in contents]


def _content(source: EntrySource, sample: Sample, own: int) -> bytes:
    if (content := held(sample, own)) is not None:
        return content
    if sample.folder is None:
        raise InputError(
            f"{source.where(sample.index)}: image {one_line(sample.images[own])[:80]!r} is a file; "
            "give the folder of the images by --images"
        )
    try:
        return read_image_bytes(sample.folder, sample.images[own])
    except SampleError as error:
        raise _UnusableError(KINDS[MISSING if isinstance(error, MissingImageError) else OUTSIDE], error) from error


def _check_images(job: ConvertJob, sources: Sequence[EntrySource]) -> None:
    for source in sources if job.images_out is None else ():
        if source.holds_images:
            raise InputError(_needs_folder(str(source.path)))


def _needs_folder(where: str) -> str:
    return f"{where}: holds images itself; give a folder to write them to by --images-out"


def _nothing(writer: _Writer) -> str:
    reasons = most_frequent(writer.notes.reasons)
    why = f": {next(iter(reasons))}" if reasons else "; give a file with at least one"
    if dropped := {option: count for option, count in writer.filtered.items() if count}:
        counts = ", ".join(f"{option} {count}" for option, count in dropped.items())
        return f"{writer.paths}: none of {writer.samples} samples passes ({counts}); relax the filters"
    return f"{writer.paths}: none of {writer.samples} samples is usable{why}"


def _dropped(source: EntrySource, sample: Sample, error: _UnusableError) -> Dropped:
    return Dropped(
        file=str(source.path),
        index=sample.index,
        id=sample.id,
        source=source_of(sample),
        kind=error.kind,
        tokens=None,
        overlong_for=[],
        reason=str(error),
    )


def _listing(job: ConvertJob, stack: ExitStack) -> "_Lines | None":
    if job.listing is None:
        return None
    return stack.enter_context(_lines(stack.enter_context(written_whole(job.listing)), job.listing))


class _Lines:
    """A file of JSON lines that is being written; `path` is its name at the end, for errors."""

    def __init__(self, stream: TextIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def write(self, values: dict[str, Any]) -> None:
        """Add a line."""
        with named_errors(self._path):
            self._stream.write(json.dumps(values, ensure_ascii=False) + "\n")


@contextmanager
def _lines(aside: Path, path: Path) -> Iterator[_Lines]:
    """Lines to write to `aside`, gzipped if `path` ends in `.gz`: then without name and time, so that equal samples
    give equal bytes."""
    with ExitStack() as stack:
        # errors of the block itself have other names
        stack.enter_context(named_errors(path))
        stream: Any = stack.enter_context(aside.open("wb"))
        if path.suffix.lower() == ".gz":
            stream = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=stream, mtime=0))
        yield _Lines(stack.enter_context(io.TextIOWrapper(stream, encoding="utf-8", newline="\n")), path)
