"""What every prompt template requires of a conversation."""

from collections.abc import Sequence

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError

IMAGE_PLACEHOLDER = "<image>"
SPEAKERS = ("human", "gpt")
# Names of the same speakers in other layouts.
_OTHER_SPEAKERS = {
    **dict.fromkeys(("user", "question", "prompter", "usr"), "human"),
    **dict.fromkeys(("assistant", "chatgpt", "bot", "bing", "bard", "model", "answer", "ai"), "gpt"),
}
_SYSTEM_SPEAKERS = ("system", "developer")


def check_turns(turns: Sequence[Turn], *, num_images: int) -> None:
    """Refuse empty conversations, unknown speakers, and a number of `<image>` that is not that of the images.

    Raises:
        SampleError: names what is wrong and what to do.
    """
    if not turns:
        raise SampleError("empty conversation; give at least one human and one gpt turn")
    for turn in turns:
        if turn.speaker not in SPEAKERS:
            raise SampleError(f"unknown speaker {turn.speaker!r}, {_expected_speaker(turn.speaker)}")
    found = sum(turn.value.count(IMAGE_PLACEHOLDER) for turn in turns)
    if found != num_images:
        raise SampleError(
            f"{found} {IMAGE_PLACEHOLDER} in the conversation but {int(num_images)} image{'s'[: num_images > 1]}; "
            f"write {IMAGE_PLACEHOLDER} exactly once per image"
        )


def _expected_speaker(found: str) -> str:
    if found in _SYSTEM_SPEAKERS:
        return (
            "expected 'human' or 'gpt'; the template has its own system prompt, put the text into the first human turn"
        )
    wanted = _OTHER_SPEAKERS.get(found)
    return f"expected {wanted!r}; rename it" if wanted else "expected 'human' or 'gpt'"
