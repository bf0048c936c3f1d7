"""Filters of samples by their answers. A sample is dropped if one of its answers does not pass."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import NamedTuple

from alignkd.pipeline.data.filter.repetition import repetition
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turns import Generated, Turn

_OF_MODELS = ("min_logprob_per_token", "min_tokens", "max_tokens", "finished_only")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What answers must fulfil; None and False: anything passes.

    The first four hold for answers that a model wrote, and need their figures: an answer without them does not pass.
    The others hold for every answer.

    Attributes:
        min_logprob_per_token: lowest mean log-probability of a token, 0 or less.
        min_tokens, max_tokens: number of tokens, the token that ends the answer included.
        finished_only: the model ended the answer itself.
        min_characters, max_characters: length of the text, white space around it left out.
        max_repetition: largest share of repeated runs of words, see `repetition`.
        dedupe: no earlier sample that was kept has the same images and the same turns.
    """

    min_logprob_per_token: float | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    finished_only: bool = False
    min_characters: int | None = None
    max_characters: int | None = None
    max_repetition: float | None = None
    dedupe: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """Options of the filters that are given, in order."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return tuple(option_of(name) for name, value in values.items() if value is not None and value is not False)

    @property
    def of_models(self) -> tuple[str, ...]:
        """Those of them that hold only for answers that a model wrote."""
        return tuple(option for option in self.given if option in map(option_of, _OF_MODELS))


class Drop(NamedTuple):
    """Why a sample is dropped: the option of the filter, and the reason in one line."""

    option: str
    reason: str


def option_of(name: str) -> str:
    """The option of the command for a filter."""
    return "--" + name.replace("_", "-")


@dataclass
class SampleFilter:
    """Applies filters to samples, one after the other.

    Attributes:
        generated: answers of a model that were seen.
    """

    filters: Filters
    generated: int = 0
    _kept: set[bytes] = field(default_factory=set)

    def drop(self, sample: Sample) -> Drop | None:
        """Why a sample is dropped; None if it is kept. The first answer and the first filter that apply are named."""
        answers = [(number, turn) for number, turn in enumerate(sample.turns) if turn.speaker == "gpt"]
        self.generated += sum(turn.generated is not None for _, turn in answers)
        for number, turn in answers:
            if (found := next(_problems(self.filters, turn), None)) is not None:
                name, reason = found
                return Drop(option_of(name), f"turn {number}: {reason}")
        if self.filters.dedupe and _identity(sample) in self._kept:
            return Drop(option_of("dedupe"), "an earlier sample has the same images and turns")
        return None

    def keep(self, sample: Sample) -> None:
        """Note a sample that was kept."""
        if self.filters.dedupe:
            self._kept.add(_identity(sample))


def _problems(filters: Filters, turn: Turn) -> Iterator[tuple[str, str]]:
    """Name of each filter that an answer does not pass, and the reason."""
    if turn.generated is not None:
        yield from _problems_of_figures(filters, turn.generated)
    characters = len(turn.value.strip())
    if filters.min_characters is not None and characters < filters.min_characters:
        yield "min_characters", f"{characters} characters, fewer than {filters.min_characters}"
    if filters.max_characters is not None and characters > filters.max_characters:
        yield "max_characters", f"{characters} characters, more than {filters.max_characters}"
    if filters.max_repetition is not None and (found := repetition(turn.value)) > filters.max_repetition:
        yield "max_repetition", f"repetition is {found:.3f}, more than {filters.max_repetition:g}"


def _problems_of_figures(filters: Filters, generated: Generated) -> Iterator[tuple[str, str]]:
    if (lowest := filters.min_logprob_per_token) is not None:
        mean = generated.logprob_per_token
        if mean is None:
            yield "min_logprob_per_token", "its log-probability per token is not known"
        elif mean < lowest:
            yield "min_logprob_per_token", f"log-probability per token is {mean:.4f}, less than {lowest:g}"
    compared: tuple[tuple[str, int | None, Callable[[int, int], bool], str], ...] = (
        ("min_tokens", filters.min_tokens, int.__lt__, "fewer"),
        ("max_tokens", filters.max_tokens, int.__gt__, "more"),
    )
    for name, limit, is_beyond, word in compared:
        if limit is None:
            continue
        if generated.tokens is None:
            yield name, "its number of tokens is not known"
        elif is_beyond(generated.tokens, limit):
            yield name, f"{generated.tokens} tokens, {word} than {limit}"
    if filters.finished_only and generated.finished is not True:
        cut = "a length limit cut it" if generated.finished is False else "whether it is finished is not known"
        yield "finished_only", cut


def _identity(sample: Sample) -> bytes:
    """Hash of images and turns: of images in the data file by content, of others by name."""
    contents = sample.contents or (None,) * len(sample.images)
    images = [
        name if content is None else hashlib.sha256(content).hexdigest()
        for name, content in zip(sample.images, contents, strict=True)
    ]
    turns = [(turn.speaker, turn.value, turn.trained) for turn in sample.turns]
    content = json.dumps([images, turns, str(sample.folder)]).encode()
    return hashlib.blake2b(content, digest_size=16).digest()
