"""Samples as a checkpoint's own processor makes them: for the model, and whole for transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map

# Text and sizes of images of each sample: one image, none, two, one.
SAMPLES: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("<image>\nwhat colour is the cat?", ((100, 60),)),
    ("is the sofa red, green or blue? how many birds are there?", ()),
    ("<image>\ndescribe the image and this one? <image>", ((200, 150), (48, 130))),
    ("what is in the picture?\n<image>", ((48, 130),)),
)
TYPES = ("token_type_ids", "mm_token_type_ids")
NOT_OF_IMAGES = ("input_ids", "attention_mask", *TYPES)


@dataclass(frozen=True)
class Processed:
    """A sample for both: `whole` is what the processor returned, batch of one."""

    example: Example
    whole: dict[str, Any]


def processed_samples(folder: Path, samples: Sequence[Any] = SAMPLES) -> list[Processed]:
    processor = AutoProcessor.from_pretrained(folder)
    # the processor of Gemma 3 gives this name to another token
    image_token_id = AutoConfig.from_pretrained(folder).image_token_id
    return [
        processed(processor, image_token_id, text, drawn_images(sizes, seed))
        for seed, (text, sizes) in enumerate(samples)
    ]


def drawn_images(sizes: Sequence[tuple[int, int]], seed: int) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    tiny = [Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)) for _ in sizes]
    return [image.resize(size, Image.Resampling.BICUBIC) for image, size in zip(tiny, sizes, strict=True)]


def processed(processor: Any, image_token_id: int, text: str, images: Sequence[Image.Image]) -> Processed:
    content: list[dict[str, str]] = []
    for number, piece in enumerate(text.split("<image>")):
        if number:
            content.append({"type": "image"})
        if piece.strip():
            content.append({"type": "text", "text": piece.strip()})
    answer = [{"type": "text", "text": "a black cat."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    rendered = processor.apply_chat_template(messages, tokenize=False)
    bos = processor.tokenizer.bos_token
    special = {"add_special_tokens": False} if bos and rendered.startswith(bos) else {}
    given = [list(images)] if images else None
    whole = processor(text=[rendered], images=given, return_tensors="pt", return_mm_token_type_ids=True, **special)
    whole = {name: values for name, values in whole.items() if name not in TYPES or name in processor.model_input_names}
    is_vision = whole["input_ids"][0].numpy() == image_token_id
    return Processed(example=_example(processor, whole, is_vision, images), whole=whole)


def _example(processor: Any, whole: dict[str, Any], is_vision: Any, images: Sequence[Image.Image]) -> Example:
    ids = whole["input_ids"][0].numpy().astype(np.int32)
    labels = np.full(len(ids), IGNORE_LABEL, np.int32)
    labels[-4:] = ids[-4:]
    arrays = []
    for image in images:
        # through the whole processor: Pixtral's passes other settings to its image processor than that has itself
        marks = [{"type": "image"}] * len(images) + [{"type": "text", "text": "?"}]
        text = processor.apply_chat_template([{"role": "user", "content": marks}], tokenize=False)
        made = processor(text=[text], images=[[image] * len(images)], return_tensors="pt")
        names = [name for name in made if name not in NOT_OF_IMAGES]
        arrays.append({name: _first(name, made[name], len(images)) for name in names})
    return Example(
        input_ids=ids,
        labels=labels,
        positions=spliced_position_map(
            is_vision, labels, _tokens_of_images(is_vision, len(images)), blocks_of_images=False
        ),
        types={name: whole[name][0].numpy().astype(np.int32) for name in TYPES if name in whole},
        images=tuple(arrays),
    )


def _first(name: str, value: Any, among: int) -> Any:
    """The first of `among` equal images."""
    if not isinstance(value, torch.Tensor):
        value = torch.stack(list(value)) if isinstance(value[0], torch.Tensor) else torch.tensor(value)
    if name == "pixel_values" and value.dim() == 5 and value.shape[0] == 1:  # all images of a sample side by side
        return value[:, : value.shape[1] // among].numpy()
    if name == "pixel_attention_mask" and value.shape[0] == 1:
        return value[:, : value.shape[1] // among].numpy()
    return value[: len(value) // among].numpy()


def _tokens_of_images(is_vision: Any, num_images: int) -> list[int]:
    """Not used by the model, so equal parts are as good as the truth."""
    if not num_images:
        return []
    total = int(is_vision.sum())
    return [total // num_images] * (num_images - 1) + [total - total // num_images * (num_images - 1)]
