"""Samples for the self-checks of a model, made by its own processor."""

import io

from PIL import Image

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.inputs.examples import Example, Preparation

_SHORT, _LONG = "What is this?", "Which of these colours do you like best: red, green, blue, or none of them?"
# Questions and their number of images. Families refuse some: text alone, or several images.
_SAMPLES = ((f"<image>\n{_LONG}", 1), (_SHORT, 0), (f"<image>\n<image>\n{_SHORT}", 2))
_SIZE = (64, 48)


def probe_examples(preparation: Preparation) -> list[Example]:
    """A sample with an image, and, where the family takes them, one without and one with two.

    Raises:
        InputError: the processor cannot prepare an image with a question and an answer.
    """
    files = [_picture(shift) for shift in (0, 1)]
    found: list[Example] = []
    for question, num_images in _SAMPLES:
        turns = [Turn("human", question), Turn("gpt", "a grey picture")]
        try:
            found.append(preparation.build(turns, files[:num_images]))
        except SampleError as error:
            if not found:
                raise InputError(f"the processor cannot prepare an image with a question: {error}") from error
    return found


def _picture(shift: int) -> bytes:
    """A small gradient as PNG: every tile differs from the others, and none is all black."""
    width, height = _SIZE
    pixels = bytes((40 + 3 * x + 2 * y + 30 * shift) % 256 for y in range(height) for x in range(width))
    with io.BytesIO() as stream:
        Image.frombytes("L", _SIZE, pixels).convert("RGB").save(stream, format="PNG")
        return stream.getvalue()
