"""The six benchmarks by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from alignkd.evaluation.answers import Answer
from alignkd.evaluation.benchmarks import gqa, mmbench, mme, pope, sqa, textvqa
from alignkd.evaluation.question import Question
from alignkd.evaluation.question_lines import read_line_questions
from alignkd.evaluation.score import Score


class _Scorer(Protocol):
    def __call__(self, folder: Path, answers: Sequence[Answer], *, as_original: bool = False) -> Score: ...


class _Asker(Protocol):
    def __call__(self, folder: Path) -> Sequence[Question]: ...


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        name: name of the benchmark, and of its folder.
        title: name in tables.
        questions: the questions of a benchmark's folder, in the order of the question file; InputError if a file or
            image is missing or belongs to another benchmark.
        score: the score of answers. With `as_original`, answers that are missing, doubled or in another order are
            scored as the original scorer does, with a note; without, they are refused. InputError if the score would
            be wrong.
    """

    name: str
    title: str
    questions: _Asker
    score: _Scorer


_ALL = (
    Benchmark("gqa", "GQA", partial(read_line_questions, name="gqa"), gqa.score_answers),
    Benchmark("sqa", "ScienceQA-IMG", sqa.read_questions, sqa.score_answers),
    Benchmark("textvqa", "TextVQA", partial(read_line_questions, name="textvqa"), textvqa.score_answers),
    Benchmark("mme", "MME", partial(read_line_questions, name="mme"), mme.score_answers),
    Benchmark("mmbench", "MMBench dev", mmbench.read_questions, mmbench.score_answers),
    Benchmark("pope", "POPE", partial(read_line_questions, name="pope"), pope.score_answers),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({benchmark.name: benchmark for benchmark in _ALL})
