"""A dump as the pipeline hands it over, and what comes back."""

from dataclasses import dataclass, field
from pathlib import Path

from alignkd.teacher_dump.config import TeacherConfig
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.sanity_report import SanityFinding
from alignkd.teacher_dump.store_config import StoreConfig
from alignkd.vlm.inputs.templates import TemplateName
from alignkd.vlm.weights.checkpoint import Checkpoint


@dataclass(frozen=True, kw_only=True)
class DumpJob:
    """Everything that decides a dump.

    Attributes:
        conversations: LLaVA-style JSON or JSON lines.
        images: folder the samples' image paths are relative to; None when no sample has an image.
        max_tokens: samples with more embedded tokens are dropped (and listed), or None.
        retry_unusable: also do those committed shards again whose unusable samples can be read by now.
        control: which shards to take, when to stop, who is told.
    """

    conversations: Path
    images: Path | None
    template: TemplateName
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
        return Checkpoint.open(self.teacher.checkpoint, vision_config=self.teacher.vision_config)


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """What a dump did.

    Attributes:
        num_samples: in the data set.
        num_records: in the store now.
        written: records that this run added.
        quarantined: (index, id, reason) of every sample the store lists as unusable.
        retryable: how many of them have a reason that can go away, such as a missing file (`retry_unusable`).
        shards_written: by this run; 0 when there was nothing left to do.
        seconds: wall time of this run.
        halved_batches: how often a batch did not fit the device and was halved.
        sanity: what the checks before the first shard found; empty when it was there already.
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
