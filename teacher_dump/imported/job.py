"""The input and the result of an import."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from alignkd.teacher_dump.imported.formats.polynomial import Compression
from alignkd.teacher_dump.imported.formats.registry import Alignment, FormatName, Match
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.settings import ProcessorKind

Tail = Literal["known", "unknown"]


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """Everything that decides an import.

    Attributes:
        files: other tools' files, all of one format.
        data: the samples that the files belong to.
        checkpoint: folder or hub id of the teacher or the student, for tokens and positions; its weights are not read.
        store: folder or URL of the store.
        vision_config, processor: as for a teacher.
        template: prompt template; None: that of the checkpoint.
        max_tokens: samples with more embedded tokens are listed as unusable; None for no limit.
        format: format of the files; None: recognised.
        compression: settings that packed DistillKit's files.
        match: how rows are found; None: see `RowNumbers`.
        alignment: whether distributions are in the row of the token that they are of (`token`) or in the row before
            (`next`); None: that of the format, checked or found out by which tokens the distributions contain.
        tail: whether the mass outside the entries is known; None: what the format guarantees.
        temperature: temperature of the files' probabilities.
        top_k: entries kept at each position, the label not counted; None: all.
        dtype: codec of the log-probabilities.
        backend, inputs, shard_size, seed: as in `StoreConfig`. `inputs` None: `embed` if the data files hold images.
        max_errors: a run with more unusable samples stops; None for no limit.
        control: progress, signals, notices.
        reading: called with rows read and rows in all while the files are read.
    """

    files: tuple[Path, ...]
    data: DataSet
    checkpoint: str | Path
    store: Path | str
    vision_config: Path | None = None
    processor: ProcessorKind = "auto"
    template: str | None = None
    max_tokens: int | None = None
    format: FormatName | None = None
    compression: Compression | None = None
    match: Match | None = None
    alignment: Alignment | None = None
    tail: Tail | None = None
    temperature: float = 1.0
    top_k: int | None = None
    dtype: str = "float16"
    backend: str = "zarr"
    inputs: Literal["reference", "embed"] | None = None
    shard_size: int = 256
    seed: int = 0
    max_errors: int | None = None
    control: DumpControl = field(default_factory=DumpControl)
    reading: Callable[[int, int], object] = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The result of an import.

    Attributes:
        format: format of the files.
        match: how rows were found.
        alignment: `token` or `next`, see `ImportJob`.
        top_k: entries kept at each position.
        tail: `known` or `unknown`.
        rows: rows in the files.
        unused_rows: rows that belong to no sample; None if that is not known, because the store was resumed.
        num_samples: samples in the data set.
        num_records: records in the store now.
        written: records that this run added.
        quarantined: (index, id, reason) of every sample that the store lists as unusable.
        shards_written: shards that this run wrote.
        seconds: wall time of this run.
    """

    format: FormatName
    match: Match
    alignment: Alignment
    top_k: int
    tail: Tail
    rows: int
    unused_rows: int | None
    num_samples: int
    num_records: int
    written: int
    quarantined: list[tuple[int, str, str]]
    shards_written: int
    seconds: float
