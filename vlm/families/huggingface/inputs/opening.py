"""Opens the preparation of a checkpoint's folder: loads its processor, checks it, and takes its fingerprints."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.huggingface.inputs.fingerprint import (
    image_processor_fingerprint,
    template_fingerprint,
    tokenizer_fingerprint,
    vision_tokens_fingerprint,
)
from alignkd.vlm.families.huggingface.inputs.images import ImageEncoder
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.families.huggingface.inputs.probes import SIZES
from alignkd.vlm.families.huggingface.inputs.processor import LoadedProcessor, load_processor
from alignkd.vlm.families.huggingface.inputs.remarks import remarks_of
from alignkd.vlm.families.huggingface.inputs.self_check import answer, checked_images, checked_types, question
from alignkd.vlm.families.huggingface.inputs.text.chat import ChatTemplate
from alignkd.vlm.families.huggingface.inputs.text.reserved import ReservedTexts
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer
from alignkd.vlm.settings import ProcessorKind


def open_preparation(
    folder: Path, *, processor: ProcessorKind = "auto", max_tokens: int | None = None
) -> HuggingFacePreparation:
    """The preparation of a checkpoint's folder; needs its configuration, tokenizer and processor files.

    Args:
        processor: see `load_processor`.
        max_tokens: maximum number of tokens of a sample, vision tokens included, or None.

    Raises:
        InputError: a file is unusable, a package is missing, or the processor or chat template is not supported.
    """
    loaded = load_processor(folder, processor)
    try:
        return _opened(loaded, max_tokens)
    except SampleError as error:
        raise InputError(f"{folder}: a plain question with one image and its answer: {error}") from error


def _opened(loaded: LoadedProcessor, max_tokens: int | None) -> HuggingFacePreparation:
    fingerprint = {"tokenizer": tokenizer_fingerprint(loaded)}
    template, tokenizer = ChatTemplate(loaded.processor), FastTokenizer(loaded.tokenizer)
    _check_template(loaded, template)
    images = checked_images(loaded, template)
    bare = HuggingFacePreparation(
        loaded=loaded,
        template=template,
        tokenizer=tokenizer,
        images=images,
        reserved=ReservedTexts.of(loaded, _framing(loaded, template, tokenizer, images)),
        types=checked_types(loaded, template, tokenizer, images),
    )
    stop = _stop(bare)
    counts = {size: loaded.count_vision_tokens(images.replacement(size, 1)) for size in SIZES}
    fingerprint |= {
        "template": template_fingerprint(template, stop),
        "image_processor": image_processor_fingerprint(loaded),
        "vision_tokens": vision_tokens_fingerprint(loaded, counts),
    }
    remarks = remarks_of(template, loaded.processor.image_token, stop)
    return replace(bare, fingerprint=fingerprint, remarks=remarks, max_tokens=max_tokens)


def _check_template(loaded: LoadedProcessor, template: ChatTemplate) -> None:
    """Refuse templates that print a list of parts instead of their text, and those that give other tokens tomorrow."""
    if template.depends_on_the_day:
        raise InputError(
            f"{loaded.folder}: its chat template computes with today's date, so a sample has other tokens every day; "
            "write a fixed date into a copy of chat_template.jinja"
        )
    if "'type':" in (text := template.render(question(1) + answer())) or loaded.processor.image_token not in text:
        raise InputError(
            f"{loaded.folder}: its chat template has no place for the images of a message; use the template of the "
            "vision-language model"
        )


def _framing(
    loaded: LoadedProcessor, template: ChatTemplate, tokenizer: FastTokenizer, images: ImageEncoder
) -> set[int]:
    """Ids that the template and the tokens of images are made of."""
    texts = [template.render(question(1) + answer()), template.render(question(1), prompt=True)]
    texts += [images.replacement(size, 1) for size in SIZES]
    return {token for text in texts for token in tokenizer.plain(text)}


def _stop(preparation: HuggingFacePreparation) -> str:
    """The stop token that follows an answer; empty if there is none."""
    tokens = preparation.tokens_of(question(1) + answer(), SIZES[:1])
    last = int(tokens.positions.next_labels[-1])
    return preparation.tokenizer.text(np.array([last])) if last in preparation.loaded.stop_ids else ""
