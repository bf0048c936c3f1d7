"""Reads all files of an import once: their rows into a temporary file, and what identifies each row."""

import hashlib
from collections.abc import Sequence

from alignkd.storage.files.checksum import file_sha256
from alignkd.teacher_dump.imported.formats.registry import ForeignFile, Format, open_foreign
from alignkd.teacher_dump.imported.job import ImportJob
from alignkd.teacher_dump.imported.matching import RowNumbers
from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.teacher_dump.imported.spool import RowSpool
from alignkd.vlm.errors import InputError, unreadable


def open_files(job: ImportJob) -> list[ForeignFile]:
    """The files of a job, all of one format.

    Raises:
        InputError: no file, a file of another format, or settings that its format does not have.
    """
    if not job.files:
        raise InputError("no file to import; give at least one")
    files = [open_foreign(path, given=job.format, compression=job.compression) for path in job.files]
    first = files[0]
    for file in files[1:]:
        if file.format != first.format:
            raise InputError(
                f"{file.path} is of {file.format.name}, {first.path} of {first.format.name}; import each alone"
            )
    if job.tail == "known" and job.temperature != 1.0:
        raise InputError(
            f"--tail known with --temperature {job.temperature}: the mass outside the entries is that of another "
            "temperature; leave --tail out"
        )
    return files


def read_rows(job: ImportJob, files: Sequence[ForeignFile], spool: RowSpool) -> RowNumbers:
    """Read every row of the files.

    Raises:
        InputError: a damaged file. OSError: no space for temporary files.
    """
    numbers = RowNumbers(job.match, has_no_order=files[0].format.has_no_order)
    total = sum(len(file.rows) for file in files)

    def added(row: ForeignRow) -> None:
        numbers.add(row)
        job.reading(numbers.count, total)
        job.control.check()

    for file in files:
        spool.add_all(file.rows.rows(), added)
    return numbers


def files_sha256(files: Sequence[ForeignFile]) -> str:
    """sha256 of the file's bytes; of several files that of their hashes in order.

    Raises:
        InputError: a file cannot be read.
    """
    hashes = []
    for file in files:
        try:
            hashes.append(file_sha256(file.path))
        except OSError as error:
            raise unreadable(file.path, error) from error
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def knows_tail(job: ImportJob, format: Format) -> bool:
    """Whether the mass outside the entries is known."""
    if job.tail is not None:
        return job.tail == "known"
    return format.knows_tail and job.temperature == 1.0


def kept_entries(job: ImportJob, spool: RowSpool) -> int:
    """Entries to keep at each position, the label not counted; by default as many as the files have.

    Raises:
        InputError: the files have no distribution.
    """
    if not spool.widest:
        raise InputError(f"{job.files[0]}: no row has a distribution{_first_problem(spool)}")
    return job.top_k or spool.widest


def _first_problem(spool: RowSpool) -> str:
    return f"; row 0: {spool[0].problem}" if len(spool) and spool[0].problem else ""
