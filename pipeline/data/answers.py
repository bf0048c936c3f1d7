"""Counts of the answers that a model wrote, and of questions without an answer."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from alignkd.pipeline.console.printing import format_count
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Generated, questions_without_answer
from alignkd.vlm.errors import one_line

UNKNOWN = "(unknown)"


@dataclass(kw_only=True)
class AnswerCounts:
    """Sums over samples; those of batches can be added.

    Attributes:
        by: name of a model, or `(unknown)` -> answers that it wrote.
        unfinished: answers that a length limit cut.
        scored: answers whose log-probability and number of tokens are known, with at least one token.
        tokens, logprob: sums over those answers.
        questions: questions without an answer.
        unanswered: samples that have such questions.
    """

    by: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    scored: int = 0
    tokens: int = 0
    logprob: float = 0.0
    questions: int = 0
    unanswered: int = 0

    def note(self, sample: Sample) -> None:
        """Count one sample that is usable, or lacks only answers."""
        for turn in sample.turns:
            if turn.generated is not None:
                self._note_answer(turn.generated)
        if sample.unanswered:
            self.unanswered += 1
            self.questions += questions_without_answer(sample.turns)

    def add(self, other: "AnswerCounts") -> None:
        """Count the samples of another batch too."""
        self.by.update(other.by)
        self.unfinished += other.unfinished
        self.scored += other.scored
        self.tokens += other.tokens
        self.logprob += other.logprob
        self.questions += other.questions
        self.unanswered += other.unanswered

    def _note_answer(self, generated: Generated) -> None:
        self.by[UNKNOWN if generated.by is None else one_line(generated.by)[:60]] += 1
        self.unfinished += generated.finished is False
        if generated.logprob is not None and generated.tokens:
            self.scored += 1
            self.tokens += generated.tokens
            self.logprob += generated.logprob


@dataclass(frozen=True, kw_only=True)
class GeneratedStats:
    """Answers of usable samples that a model wrote.

    Attributes:
        answers: number of them.
        by: name of a model, or `(unknown)` -> answers that it wrote; the most frequent first.
        unfinished: answers that a length limit cut.
        scored: answers whose log-probability and number of tokens are known.
        mean_tokens: mean number of tokens of these; None without any.
        logprob_per_token: their log-probability per token: the sum over all of them by the number of all their tokens;
            None without any.
    """

    answers: int
    by: Mapping[str, int]
    unfinished: int
    scored: int
    mean_tokens: float | None
    logprob_per_token: float | None

    @classmethod
    def of(cls, counts: AnswerCounts) -> "GeneratedStats | None":
        """The figures of some samples; None without an answer of a model."""
        if not counts.by:
            return None
        return cls(
            answers=counts.by.total(),
            by=dict(sorted(counts.by.items(), key=lambda item: (-item[1], item[0]))),
            unfinished=counts.unfinished,
            scored=counts.scored,
            mean_tokens=counts.tokens / counts.scored if counts.scored else None,
            logprob_per_token=counts.logprob / counts.tokens if counts.scored else None,
        )

    def lines(self) -> Iterator[str]:
        """The figures for the terminal."""
        yield (
            f"written by a model: {format_count(self.answers, 'answer')} ("
            + ", ".join(f"{name} {count:,}" for name, count in list(self.by.items())[:5])
            + f"), {self.unfinished:,} cut by a length limit"
        )
        if self.logprob_per_token is not None:
            yield (
                f"log-probability of {format_count(self.scored, 'answer')}: {self.logprob_per_token:.4f} per token, "
                f"{self.mean_tokens:,.1f} tokens on average"
            )


def generated_text(generated: Generated) -> str:
    """How an answer was written, for the terminal."""
    known: list[Any] = [f"written by {'a model' if generated.by is None else one_line(generated.by)[:60]}"]
    if generated.tokens is not None:
        known.append(format_count(generated.tokens, "token"))
    if generated.logprob is not None:
        known.append(f"log-probability {generated.logprob:.4f}")
    if (per_token := generated.logprob_per_token) is not None:
        known.append(f"{per_token:.4f} per token")
    if generated.finished is False:
        known.append("cut by a length limit")
    return ", ".join(known)
