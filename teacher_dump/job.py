"""The input and the result of a dump."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkd.storage.read.store import StoreReader
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.retry import may_be_retried
from alignkd.teacher_dump.operation.unusable import why_none
from alignkd.teacher_dump.sanity_report import SanityFinding
from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.teacher_dump.teacher import open_teacher
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.family import Checkpoint


@dataclass(frozen=True, kw_only=True)
class DumpJob:
    """Everything that decides a dump.

    Attributes:
        data: the data sets, whose samples follow one another.
        template: name of a prompt template; None: that of the checkpoint, or the default of its family.
        max_tokens: samples with more embedded tokens are dropped and listed; None for no limit.
        retry_unusable: also write committed shards again if unusable samples of theirs can be read now.
        control: which shards to write, when to stop, and progress reports.
    """

    data: tuple[DataSet, ...]
    template: str | None
    max_tokens: int | None
    teacher: TeacherConfig
    store: StoreConfig
    retry_unusable: bool = False
    control: DumpControl = field(default_factory=DumpControl)

    def open_teacher(self) -> Checkpoint:
        """The teacher's checkpoint, found once for the whole dump.

        Raises:
            InputError: no such checkpoint.
        """
        return open_teacher(self.teacher)


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """The result of a dump.

    Attributes:
        num_samples: samples in the data set.
        num_records: records in the store now.
        written: records that this run added.
        quarantined: (index, id, reason) of every sample that the store lists as unusable.
        retryable: number of them whose reason can be removed, such as a missing file (`retry_unusable`).
        shards_written: shards that this run wrote; 0 if there was nothing to do.
        seconds: wall time of this run.
        halved_batches: number of batches that did not fit the device and were halved.
        sanity: results of the checks before the first shard; empty if the store had shards already.
    """

    num_samples: int
    num_records: int
    written: int
    quarantined: list[tuple[int, str, str]]
    retryable: int
    shards_written: int
    seconds: float
    halved_batches: int = 0
    sanity: tuple[SanityFinding, ...] = ()


def stored_result(
    store: Path | str, *, data: object, num_samples: int, is_complete: bool, **counted: Any
) -> DumpResult:
    """The state of a store after a run.

    Args:
        data: the data file, for a message.
        num_samples: samples in the data set.
        is_complete: whether no shard is left.
        counted: the fields that count what the run did.

    Raises:
        InputError: the store is complete, and no sample is usable.
        StoreError: the store cannot be read.
    """
    reader = StoreReader(store, allow_incomplete=True)
    quarantined = [(entry.index, entry.id, entry.reason) for entry in reader.quarantined]
    if is_complete and not len(reader):
        raise InputError(f"{data}: none of {num_samples} samples is usable, {why_none(quarantined)}")
    return DumpResult(
        num_samples=num_samples,
        num_records=len(reader),
        quarantined=quarantined,
        retryable=sum(may_be_retried(reason) for _, _, reason in quarantined),
        **counted,
    )
