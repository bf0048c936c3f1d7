"""The input and the result of a generation."""

from dataclasses import dataclass, field

from alignkd.teacher_dump.generate.settings import GenerateConfig
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.settings.teacher import TeacherConfig
from alignkd.vlm.data.source import DataSet


@dataclass(frozen=True, kw_only=True)
class GenerateJob:
    """Everything that decides a generation.

    Attributes:
        data: the data sets, whose samples follow one another.
        template: name of a prompt template; None: that of the checkpoint, or the default of its family.
        max_tokens: most embedded tokens of a question with its answer; None for no limit.
        retry_unusable: also write shards again if unusable samples of theirs can be prepared now.
        control: which shards to write, when to stop, and progress reports.
    """

    data: tuple[DataSet, ...]
    template: str | None
    max_tokens: int | None
    teacher: TeacherConfig
    generate: GenerateConfig
    retry_unusable: bool = False
    control: DumpControl = field(default_factory=DumpControl)


@dataclass(frozen=True, kw_only=True)
class GenerateResult:
    """The result of a generation.

    Attributes:
        num_samples: samples of the data sets.
        entries: entries that were written by now, by all runs and workers.
        answers: answers that the teacher wrote in them.
        finished: number of these that the teacher ended itself.
        tokens: tokens of these answers, end tokens included.
        logprob: sum of the log-probabilities of these tokens, in nats.
        unusable: (index, id, reason) of every sample without an entry, for each entry that it lacks.
        retryable: number of them whose reason can be removed, such as a missing file (`retry_unusable`).
        shards_written: shards that this run wrote; 0 if there was nothing to do.
        shards_left: shards that are still to be written, by other workers or a later run.
        images: folder to which the image paths of the entries are relative; None without images.
        seconds: wall time of this run.
        halved_batches: number of batches that did not fit the device and were halved.
    """

    num_samples: int
    entries: int
    answers: int
    finished: int
    tokens: int
    logprob: float
    unusable: list[tuple[int, str, str]]
    retryable: int
    shards_written: int
    shards_left: int
    images: str | None
    seconds: float
    halved_batches: int = 0
