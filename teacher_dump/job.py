"""A dump as the pipeline hands it over, and what comes back."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from teacher_dump.config import TeacherConfig
from teacher_dump.store_config import StoreConfig
from vlm.templates import TemplateName


@dataclass(frozen=True, kw_only=True)
class DumpJob:
    """Everything that decides a dump.

    Attributes:
        conversations: LLaVA-style JSON or JSON lines.
        images: folder the samples' image paths are relative to; None when no sample has an image.
        max_tokens: samples with more embedded tokens are dropped (and listed), or None.
        progress: called as `progress(done, total)` after every batch; the display is the caller's.
    """

    conversations: Path
    images: Path | None
    template: TemplateName
    max_tokens: int | None
    teacher: TeacherConfig
    store: StoreConfig
    progress: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True, kw_only=True)
class DumpResult:
    """What a dump did.

    Attributes:
        num_samples: in the data set.
        num_records: in the store now.
        written: records that this run added.
        quarantined: (index, id, reason) of every sample the store lists as unusable.
        shards_written: by this run; 0 when there was nothing left to do.
        seconds: wall time of this run.
    """

    num_samples: int
    num_records: int
    written: int
    quarantined: list[tuple[int, str, str]]
    shards_written: int
    seconds: float
