"""What every prompt template requires of a conversation."""

from collections.abc import Sequence

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import LabelMaskError, SampleError

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt", "system")
HOW_TO_MARK = f"write {IMAGE_PLACEHOLDER} exactly once per image, in the text of the turn that shows it"

OR_GENERATE = "or set data.answers to missing and run `alignkd generate`"
"""What else to do about a question without an answer."""


def check_turns(turns: Sequence[Turn], *, num_images: int) -> None:
    """Refuse empty conversations, unknown speakers, and a number of `<image>` that is not that of the images.

    Raises:
        SampleError: names what is wrong and what to do.
    """
    if not turns:
        raise SampleError("empty conversation; give at least one human and one gpt turn")
    for number, turn in enumerate(turns):
        if turn.speaker not in SPEAKERS:
            raise SampleError(f"unknown speaker {turn.speaker!r}, expected 'human', 'gpt' or 'system'; rename it")
        if turn.speaker == "system":
            _check_system(number, turn)
    found = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns)
    if found != num_images:
        raise SampleError(
            f"{found} {IMAGE_PLACEHOLDER} in the conversation but {int(num_images)} image{'s'[: num_images != 1]}; "
            f"{HOW_TO_MARK}"
        )


def check_trained(turns: Sequence[Turn]) -> None:
    """Refuse a conversation that has answers, but none that is trained on.

    Raises:
        LabelMaskError: every answer is excluded from training.
    """
    answers = [turn.trained for turn in turns if turn.speaker == "gpt"]
    if answers and not any(answers):
        raise LabelMaskError("nothing would be trained: every answer is masked; unmask an answer, or remove the sample")


def split_system(turns: Sequence[Turn]) -> tuple[Turn | None, Sequence[Turn]]:
    """The system prompt of a checked conversation, or None, and the other turns."""
    if turns and turns[0].speaker == "system":
        return turns[0], turns[1:]
    return None, turns


def _check_system(number: int, turn: Turn) -> None:
    if number:
        raise SampleError(f"turn {number} is a system prompt; it may only come first, move it there or remove it")
    if IMAGE_PLACEHOLDER in turn.value:
        raise SampleError(f"{IMAGE_PLACEHOLDER} is in the system prompt; move it to a human turn")
