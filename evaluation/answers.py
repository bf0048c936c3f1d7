"""The answers file of the original generators: one JSON object per line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alignkd.evaluation.listed import value_of
from alignkd.evaluation.question import Question, is_id
from alignkd.evaluation.reading import read_json_lines
from alignkd.vlm.errors import InputError

_END_OF_TEXT = "</s>"
# in mmbench: `round_id` before the prompt, the other fields after the text
_BEFORE_PROMPT = ("round_id",)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One line of an answers file.

    Attributes:
        question_id: as in the question file.
        prompt: the question as the generator wrote it; None if the line has none.
        text: what the model answered.
        fields: all other keys of the line.
        place: file and line, for messages.
    """

    question_id: str | int
    prompt: str | None
    text: str
    fields: Mapping[str, object] = field(default_factory=dict, compare=False)
    place: str = field(default="answer", compare=False)


def read_answers(path: Path) -> list[Answer]:
    """All answers of a file, in its order.

    Raises:
        InputError: the file is unreadable, empty or not UTF-8; a line is not a JSON object, or has no `question_id` or
            no `text`.
    """
    return [_answer(values, f"{path}: line {number}") for number, values in read_json_lines(path)]


def answer_line(question: Question, text: str, *, answer_id: str, model_id: str) -> str:
    """The line of the original generators for one answer, with keys in their order, and the line end.

    Args:
        text: see `clean_text`.
    """
    early = {key: value for key, value in question.fields.items() if key in _BEFORE_PROMPT}
    late = {key: value for key, value in question.fields.items() if key not in _BEFORE_PROMPT}
    line = {
        "question_id": question.id,
        **early,
        "prompt": question.prompt,
        "text": text,
        **late,
        "answer_id": answer_id,
        "model_id": model_id,
        "metadata": {},
    }
    return json.dumps(line) + "\n"


def clean_text(raw: str) -> str:
    """The text of an answer from the decoded tokens: without outer white space and one literal `</s>` at the end."""
    return raw.strip().removesuffix(_END_OF_TEXT).strip()


def prompt_of(answer: Answer) -> str:
    """The prompt of an answer, for the scores that depend on it.

    Raises:
        InputError: the line has no prompt.
    """
    if answer.prompt is None:
        raise InputError(f"{answer.place}: no `prompt`; this benchmark is scored with the prompts, generate them too")
    return answer.prompt


def _answer(values: dict[str, object], place: str) -> Answer:
    rest = {key: value for key, value in values.items() if key not in ("question_id", "prompt", "text")}
    question_id, prompt, text = (values.get(key) for key in ("question_id", "prompt", "text"))
    if not is_id(question_id):
        raise InputError(
            f"{place}: `question_id` is {value_of(question_id)}, not a text or an integer; write this line again"
        )
    if not isinstance(text, str):
        raise InputError(f"{place}: `text` is {value_of(text)}, not a text; write this line again")
    if prompt is not None and not isinstance(prompt, str):
        raise InputError(f"{place}: `prompt` is {value_of(prompt)}, not a text; write this line again")
    return Answer(question_id=question_id, prompt=prompt, text=text, fields=rest, place=place)
