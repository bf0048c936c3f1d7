"""The answers to one benchmark, in blocks of consecutive questions that any number of processes write.

    OUT/gqa/questions.json         which questions are asked
    OUT/gqa/parts/00000003.jsonl   the answers of a block, see `journal.py`
    OUT/gqa/answers.jsonl          all answers in the order of the questions, in the original's format
    OUT/gqa/score.json             their score

The last two exist only when every question has its answer.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from alignkd.evaluation.question import Question
from alignkd.pipeline.evaluation.journal import Answered, Journal, JournalContent, Process, read_journal
from alignkd.teacher_dump.operation.status import FOLDER, is_claimed

BLOCK = 128
PARTS = "parts"


class AnswerParts:
    """The blocks of a benchmark; an `Output` of workers.

    A block with questions that could not be asked is pending once for every process: their files may be back.

    Args:
        path: the folder of the benchmark in OUT.
        questions: those to ask, in order.
        process: what this process runs on; None if it only reads.
    """

    def __init__(self, path: Path, questions: Sequence[Question], process: Process | None = None) -> None:
        self.path, self.questions, self.process = path, questions, process
        contents = [self._content(block) for block in range(self.num_blocks)]
        self._retried = {block for block, found in enumerate(contents) if _unusable(found)}

    @property
    def num_blocks(self) -> int:
        """Blocks of the benchmark."""
        return _num_blocks(len(self.questions))

    def positions_of(self, block: int) -> range:
        """Positions of the questions of a block."""
        return _positions_of(block, len(self.questions))

    def pending_shards(self) -> list[int]:
        """Blocks with questions to ask, ascending."""
        return [block for block in range(self.num_blocks) if self.is_pending(block)]

    def is_pending(self, shard: int) -> bool:
        """Whether a block has questions to ask."""
        return bool(self.planned_samples(shard))

    def planned_samples(self, shard: int) -> list[int]:
        """Positions of the questions of a block that are to be asked."""
        found = self._content(shard)
        if shard in self._retried:
            found = found.without_unusable()
        return [position for position in self.positions_of(shard) if position not in found.answers]

    def shared_folder(self, name: str) -> Path:
        """A folder for files that are not answers."""
        return self.path / name

    def is_in_hand(self, block: int) -> bool:
        """Whether a living process answers a block, or has claimed it."""
        return is_claimed(self.shared_folder(FOLDER), block)

    def open(self, block: int) -> Journal:
        """The journal of a block that this process has claimed.

        Raises:
            StoreError: it cannot be written.
        """
        assert self.process is not None
        self._retried.discard(block)
        return Journal(self._file(block), self.positions_of(block), self.process)

    def answers(self) -> list[Answered]:
        """What was asked so far, in the order of the questions.

        Raises:
            InputError: a journal cannot be read.
        """
        return answered_in(self.path, len(self.questions))

    def processes(self) -> list[Process]:
        """The processes that wrote the answers, without repetition."""
        found: list[Process] = []
        for content in self._contents():
            found += [process for process in content.processes if process not in found]
        return found

    def _contents(self) -> Iterator[JournalContent]:
        return map(self._content, range(self.num_blocks))

    def _content(self, block: int) -> JournalContent:
        return read_journal(self._file(block), self.positions_of(block))

    def _file(self, block: int) -> Path:
        return _file(self.path, block)


def answered_in(path: Path, num_questions: int) -> list[Answered]:
    """What was asked so far of a benchmark, in the order of the questions.

    Args:
        path: its folder in OUT.
        num_questions: number of questions that are asked.

    Raises:
        InputError: a journal cannot be read.
    """
    blocks = range(_num_blocks(num_questions))
    contents = [read_journal(_file(path, block), _positions_of(block, num_questions)) for block in blocks]
    return sorted((one for found in contents for one in found.answers.values()), key=lambda one: one.position)


def _num_blocks(num_questions: int) -> int:
    return -(-num_questions // BLOCK)


def _positions_of(block: int, num_questions: int) -> range:
    return range(block * BLOCK, min((block + 1) * BLOCK, num_questions))


def _file(path: Path, block: int) -> Path:
    return path / PARTS / f"{block:08d}.jsonl"


def _unusable(found: JournalContent) -> bool:
    return any(one.unusable is not None for one in found.answers.values())
