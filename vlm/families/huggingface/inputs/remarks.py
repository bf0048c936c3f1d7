"""What a user should know of a chat template before training with it."""

from alignkd.vlm.families.huggingface.inputs.self_check import answer, question
from alignkd.vlm.families.huggingface.inputs.text.chat import DATE, ChatTemplate
from alignkd.vlm.families.huggingface.inputs.text.messages import Message

_BEFORE, _AFTER = "text before the image", "text after the image"


def remarks_of(template: ChatTemplate, placeholder: str, stop: str) -> tuple[str, ...]:
    """One line for each property of a chat template that training cannot see.

    Args:
        placeholder: the template's text for an image.
        stop: the token after an answer; empty if there is none.

    Raises:
        SampleError: the template refuses a question, an answer, or a second question.
    """
    found = []
    if not _prompt_is_prefix(template):
        found.append(
            "chat template: the prompt for an answer is not how the same turn begins in training text, so the model "
            "answers after other tokens than it was trained on"
        )
    if not stop:
        found.append(
            "chat template: no end-of-turn token follows an answer, so the student does not learn where to stop"
        )
    if _images_first(template, placeholder):
        found.append(
            "chat template: all images of a turn come before its text, so the text around each <image> no longer shows "
            "which image it is about"
        )
    if template.writes_the_date:
        found.append(f"chat template: it writes today's date; {DATE:%Y-%m-%d} is used every day")
    return tuple(found)


def _prompt_is_prefix(template: ChatTemplate) -> bool:
    first = question(1)
    second = first + answer() + question(0)
    return all(
        template.render(asked + answer()).startswith(template.render(asked, prompt=True)) for asked in (first, second)
    ) and template.render(second + answer()).startswith(template.render(first, prompt=True))


def _images_first(template: ChatTemplate, placeholder: str) -> bool:
    turn: Message = {
        "role": "user",
        "content": [{"type": "text", "text": _BEFORE}, {"type": "image"}, {"type": "text", "text": _AFTER}],
    }
    text = template.render([turn])
    return text.find(placeholder) < text.find(_BEFORE)
