"""A conversation as the checkpoint's chat template writes it, and where in the text the answers are."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from alignkd.vlm.errors import SampleError, one_line
from alignkd.vlm.families.huggingface.inputs.text.messages import Message, text_of

DATE = datetime(2025, 1, 1)
"""The date that templates write which ask for today's: the tokens of a sample may not depend on the day."""
_ASKS_FOR_DATE = "strftime_now"
_ASKS_WHETHER_IT_CAN = re.compile(_ASKS_FOR_DATE + r"\s+is\s+(?:not\s+)?defined")
_DATE_CALL = re.compile(_ASKS_FOR_DATE + r"""\(\s*(?:"([^"\n]*)"|'([^'\n]*)')\s*\)""")
# Pairs of private-use characters; the first pair that the conversation does not hold marks the answers.
_MARKS = tuple((chr(code), chr(code + 1)) for code in range(0xE0F0, 0xE0FE, 2))
# A system prompt that no template writes by itself.
_PROBE = "Answer every question of the gardener."
_NO_SYSTEM = "remove it from the entry, or data.system, or put its text into the first human turn"


@dataclass(frozen=True)
class Answer:
    """An answer in a rendered text: characters `start` to `end`, which read `text`."""

    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation with its answers in order."""

    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a processor of transformers."""

    processor: Any

    @cached_property
    def source(self) -> str:
        """The template's text, with `DATE` in place of today's."""
        return _DATE_CALL.sub(lambda call: json.dumps(DATE.strftime(call[1] or call[2] or "")), self._own)

    @property
    def writes_the_date(self) -> bool:
        """Whether the template asks for today's date."""
        return _ASKS_FOR_DATE in self._own

    @property
    def depends_on_the_day(self) -> bool:
        """Whether the template asks for today's date in a way that `source` has not replaced."""
        return _ASKS_FOR_DATE in _ASKS_WHETHER_IT_CAN.sub("", self.source)

    @property
    def _own(self) -> str:
        template = self.processor.chat_template
        return str(template["default"] if isinstance(template, dict) else template)

    def render(self, messages: Sequence[Message], *, prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            prompt: end where the next answer begins.

        Raises:
            SampleError: the template refuses the conversation.
        """
        if not messages or messages[0]["role"] != "system":
            return self._applied(messages, prompt=prompt)
        system = text_of(messages[0])
        if self._writes_system is None:
            raise SampleError(f"the chat template has no place for a system prompt; {_NO_SYSTEM}")
        text = self._applied([self._writes_system(system), *messages[1:]], prompt=prompt)
        if system.strip() not in text:
            raise SampleError(f"the chat template changes the system prompt ({one_line(system)[:60]!r}); {_NO_SYSTEM}")
        return text

    def render_training(self, messages: Sequence[Message]) -> Rendered:
        """The text of a conversation with the places of its answers.

        The conversation is rendered twice, with its answers and with a mark for each. The text between the marks must
        be found again around the answers.

        Raises:
            SampleError: the template refuses the conversation, or changes an answer, or writes other text around it.
        """
        text = self.render(messages)
        answers = [text_of(message) for message in messages if message["role"] == "assistant"]
        return Rendered(text, tuple(_located(text, self._frame(messages, len(answers)), answers)))

    @cached_property
    def _writes_system(self) -> Callable[[str], Message] | None:
        """Makes the system message in the form that the template writes: parts, or a text; None if it writes neither.

        Some templates leave a system message out, some print a list of parts as such.
        """
        asked = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
        for form in (_system_of_parts, _system_of_text):
            try:
                text = self._applied([form(_PROBE), *asked], prompt=True)
            except SampleError:
                continue
            if text.count(_PROBE) == 1 and "'type':" not in text:
                return form
        return None

    def _applied(self, messages: Sequence[Message], *, prompt: bool) -> str:
        try:
            return str(
                self.processor.apply_chat_template(
                    list(messages), chat_template=self.source, tokenize=False, add_generation_prompt=prompt
                )
            )
        except Exception as error:  # templates are programs: they raise anything
            raise SampleError(
                f"the chat template refuses the conversation ({one_line(error)[:200]}); change the order of its turns"
            ) from error

    def _frame(self, messages: Sequence[Message], count: int) -> list[str]:
        """The text before, between and after the answers."""
        first, last = _marks(messages)
        numbers = iter(range(count))
        marked = [
            {**message, "content": [{"type": "text", "text": f"{first}{next(numbers)}{last}"}]}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]
        pieces = re.split(f"{first}([0-9]+){last}", self.render(marked))
        if [int(number) for number in pieces[1::2]] != list(range(count)):
            raise SampleError(
                "the chat template does not write every answer once and in order, so it is unknown which tokens to "
                "train; remove the sample, or use another template"
            )
        return pieces[::2]


def _system_of_parts(text: str) -> Message:
    return {"role": "system", "content": [{"type": "text", "text": text}]}


def _system_of_text(text: str) -> Message:
    return {"role": "system", "content": text}


def _marks(messages: Sequence[Message]) -> tuple[str, str]:
    held = "".join(text_of(message) for message in messages)
    for first, last in _MARKS:
        if first not in held and last not in held:
            return first, last
    raise SampleError(f"the conversation holds all of {_MARKS[0][0]!r} to {_MARKS[-1][1]!r}; remove these characters")


def _located(text: str, frame: Sequence[str], answers: Sequence[str]) -> Iterator[Answer]:
    position = 0
    for number, (before, after, answer) in enumerate(zip(frame, frame[1:], answers, strict=False)):
        start = position + len(before)
        found = None
        if text.startswith(before, position):
            ends = number + 1 == len(answers)
            found = next((form for form in _forms(answer) if _follows(text, start, form, after, ends=ends)), None)
        if found is None:
            raise SampleError(
                f"the chat template changes answer {number + 1} ({one_line(answer)[:60]!r}) or the text around it, so "
                "it is unknown which tokens to train; rewrite the answer as the template writes it"
            )
        position = start + len(found)
        yield Answer(start, position, found)


def _follows(text: str, start: int, answer: str, after: str, *, ends: bool) -> bool:
    """Whether `answer` and then `after` stand at `start`, and the text ends there if `ends`."""
    if not text.startswith(answer, start) or not text.startswith(after, start + len(answer)):
        return False
    return not ends or start + len(answer) + len(after) == len(text)


def _forms(answer: str) -> tuple[str, ...]:
    """An answer as templates write it: as it is, or with less white space around it."""
    forms = (answer, answer.strip(), answer.rstrip(), answer.lstrip(), answer.strip("\n"), answer.lstrip("\n"))
    return tuple(dict.fromkeys((*forms, answer.rstrip("\n"))))
