"""Image placeholders in a rendered text -> the text of their tokens."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace

from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.huggingface.inputs.text.chat import Answer, Rendered


def expanded(rendered: Rendered, placeholder: str, replacements: Sequence[str]) -> Rendered:
    """The text with each placeholder replaced, and the answers where they are then.

    Args:
        replacements: the text of each image's tokens, in order.

    Raises:
        SampleError: another number of placeholders.
    """
    pieces = rendered.text.split(placeholder)
    if len(pieces) - 1 != len(replacements):
        raise SampleError(
            f"the chat template writes {len(pieces) - 1} {placeholder} for {len(replacements)} images; remove the "
            "sample, or use another template"
        )
    ends, shifts = [], [0]
    text, position = pieces[0], len(pieces[0])
    parts = [text]
    for replacement, piece in zip(replacements, pieces[1:], strict=True):
        position += len(placeholder)
        ends.append(position)
        shifts.append(shifts[-1] + len(replacement) - len(placeholder))
        position += len(piece)
        parts += [replacement, piece]
    return Rendered("".join(parts), tuple(_moved(answer, ends, shifts) for answer in rendered.answers))


def _moved(answer: Answer, ends: Sequence[int], shifts: Sequence[int]) -> Answer:
    shift = shifts[bisect_right(ends, answer.start)]
    return replace(answer, start=answer.start + shift, end=answer.end + shift)
