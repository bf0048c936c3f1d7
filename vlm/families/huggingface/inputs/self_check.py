"""Compares this package's way to tokens and pixels with a plain call of the processor, before the first sample.

Samples are tokenised here without the processor's own call, to know which characters each token holds, and images are
processed one by one. A processor that does more than replace placeholders would give other tokens; it is refused.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.families.huggingface.inputs.images import TYPE_IDS, ImageEncoder
from alignkd.vlm.families.huggingface.inputs.processor import LoadedProcessor
from alignkd.vlm.families.huggingface.inputs.text.chat import ChatTemplate, Rendered
from alignkd.vlm.families.huggingface.inputs.text.expansion import expanded
from alignkd.vlm.families.huggingface.inputs.text.messages import Message
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer
from alignkd.vlm.inputs.examples import ImageArrays

_TEXT = "Which colours are there?"
_ANSWER = "Red,\nand blue."
# Wide and tall: processors that cut images into tiles cut these differently.
_SIZES = ((640, 240), (200, 420))
_TOLERANCE = 1e-3


def question(images: int, text: str = _TEXT) -> list[Message]:
    """A question about so many images."""
    return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}]


def answer(text: str = _ANSWER) -> list[Message]:
    """An answer."""
    return [{"role": "assistant", "content": [{"type": "text", "text": text}]}]


def checked_images(loaded: LoadedProcessor, template: ChatTemplate) -> ImageEncoder:
    """The image side of a processor, with what it needs to know beside an image.

    Raises:
        InputError: an image's tokens depend on the other images in a way that is not supported.
    """
    prompts = template.render(question(1)), template.render(question(2))
    encoder = ImageEncoder(processor=loaded.processor, prompts=prompts)
    pair = pictures(2)
    try:
        alone = [encoder.encode(image, 1) for image in pair]
        arrays, together = encoder.process(pair)
        if [image.replacement for image in alone] != together:
            encoder = replace(encoder, alone_differs=True)
            alone = [encoder.encode(image, 2) for image in pair]
    except Exception as error:
        raise _refused(loaded, f"fails on an image ({one_line(error)[:200]})") from error
    if [image.replacement for image in alone] != together or not _same(arrays, [image.arrays for image in alone]):
        raise _refused(loaded, "makes something else of an image, depending on the sample's other images")
    return replace(encoder, on_meta=_computes_on_meta(encoder))


def _same(together: ImageArrays, alone: Sequence[ImageArrays]) -> bool:
    """Whether images that were processed together have the arrays of each one alone, one below the other.

    Arrays of other shapes are not compared: they are padded to the largest image, or have one row per sample.
    """
    for name, wanted in together.items():
        parts = [arrays[name] for arrays in alone]
        comparable = {part.shape[1:] for part in parts} == {wanted.shape[1:]} and sum(map(len, parts)) == len(wanted)
        if comparable and not np.allclose(np.concatenate(parts), wanted, atol=_TOLERANCE):
            return False
    return True


def _computes_on_meta(encoder: ImageEncoder) -> bool:
    """Whether shapes alone give the same tokens as images."""
    for size in _SIZES:
        for among in (1, 2):
            wanted = encoder.encode(Image.new("RGB", size), among).replacement
            try:
                found = encoder.on_meta_of_size(size, encoder.copies(among))
            except Exception:  # an operation that meta tensors do not have
                return False
            if found != wanted:
                return False
    return True


def checked_types(
    loaded: LoadedProcessor, template: ChatTemplate, tokenizer: FastTokenizer, images: ImageEncoder
) -> tuple[str, ...]:
    """Names of the arguments with a type for each token that the model takes, after comparing ids and types.

    Raises:
        InputError: the processor's own call gives other ids or types.
    """
    types: dict[str, None] = {}
    for count in range(4):
        for messages in (question(count) + answer(), question(count) + answer() + question(0) + answer()):
            found = _called(loaded, template.render(messages), pictures(count))
            ids = _own_ids(template, tokenizer, images, messages, count)
            wanted = found["input_ids"][0].tolist()
            if ids.tolist() != wanted:
                raise _refused(loaded, f"makes other tokens than its tokenizer of a conversation with {count} images")
            names = _listed_types(loaded, found)
            types |= dict.fromkeys(names)
            for name in names:
                if loaded.processor.create_mm_token_type_ids([wanted])[0] != found[name][0].tolist():
                    raise _refused(loaded, f"gives {name} that are not a matter of the ids")
    return tuple(types)


def _listed_types(loaded: LoadedProcessor, found: Any) -> list[str]:
    names = [name for name in dict.fromkeys(loaded.processor.model_input_names) if name.endswith(TYPE_IDS)]
    if missing := [name for name in names if name not in found]:
        raise _refused(loaded, f"lists {', '.join(missing)} but does not return it")
    return [name for name in names if name != TYPE_IDS or bool(found[name].any())]


def _own_ids(
    template: ChatTemplate, tokenizer: FastTokenizer, images: ImageEncoder, messages: Sequence[Message], count: int
) -> np.ndarray[Any, Any]:
    replacements = [images.replacement(picture.size, count) for picture in pictures(count)]
    rendered = Rendered(template.render(messages), ())
    return tokenizer(expanded(rendered, images.processor.image_token, replacements).text).ids


def _called(loaded: LoadedProcessor, text: str, images: Sequence[Image.Image]) -> Any:
    bos = loaded.tokenizer.bos_token
    options = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    try:
        return loaded.processor(
            text=[text],
            images=[list(images)] if images else None,
            return_tensors="pt",
            return_mm_token_type_ids=True,
            **options,
        )
    except Exception as error:
        raise _refused(
            loaded, f"fails on a conversation with {len(images)} images ({one_line(error)[:200]})"
        ) from error


def pictures(count: int) -> list[Image.Image]:
    """Pictures of noise."""
    draw = np.random.default_rng(0).integers
    sizes = [_SIZES[number % len(_SIZES)] for number in range(count)]
    return [Image.fromarray(draw(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


def _refused(loaded: LoadedProcessor, what: str) -> InputError:
    return InputError(f"{loaded.folder}: {type(loaded.processor).__name__} {what}; this model is not supported")
