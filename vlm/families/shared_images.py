"""Encoded images: tower and projector run once for an image, whose questions may be far apart in the question file."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.inputs.examples import ImageArrays
from alignkd.vlm.inputs.packed_images import PackedImages

# on the model's device; MobileVLM V2 1.7B has 0.6 MB for an image in float16
KEPT_BYTES = 512 << 20


class WithImages(Protocol):
    """A prompt; images of equal hashes are equal."""

    @property
    def image_hashes(self) -> Sequence[str]:
        """The name of each image."""

    @property
    def images(self) -> Sequence[ImageArrays]:
        """The arrays of each image."""


class SharedImages:
    """Encodes the images of prompts; keeps the newest ones.

    Args:
        kept_bytes: bytes of the images that are kept for later prompts.
    """

    def __init__(self, model: VisionLanguageModel, kept_bytes: int = KEPT_BYTES) -> None:
        self._model, self._room = model, kept_bytes
        self._kept: OrderedDict[str, Vision] = OrderedDict()

    @torch.no_grad()
    def encoded(self, prompts: Sequence[WithImages]) -> Vision | None:
        """The images of some prompts, in their order; None if they have none."""
        shown = {
            image: arrays
            for prompt in prompts
            for image, arrays in zip(prompt.image_hashes, prompt.images, strict=True)
        }
        seen = {image: self._take(image) for image in shown if image in self._kept}
        new = {image: arrays for image, arrays in shown.items() if image not in seen}
        if new:
            tensors = [
                {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
                for arrays in new.values()
            ]
            found = self._model.encode_images(PackedImages.of(tensors).to(self._model.device))
            seen |= zip(new, map(_own, found.split()), strict=True)
        for image, vision in seen.items():
            self._keep(image, vision)
        images = [seen[image] for prompt in prompts for image in prompt.image_hashes]
        return Vision.join(images) if images else None

    def _take(self, image: str) -> Vision:
        vision = self._kept.pop(image)
        self._room += _num_bytes(vision)
        return vision

    def _keep(self, image: str, vision: Vision) -> None:
        """Keep an image as the newest one, and drop the oldest ones that do not fit beside it."""
        self._kept[image] = vision
        self._room -= _num_bytes(vision)
        while self._room < 0:
            self._room += _num_bytes(self._kept.popitem(last=False)[1])


def _own(vision: Vision) -> Vision:
    """A copy: a part of a batch would keep the whole batch in memory."""
    return replace(
        vision,
        embeddings_PD=vision.embeddings_PD.clone(),
        per_token={name: values.clone() for name, values in vision.per_token.items()},
        per_image={name: values.clone() for name, values in vision.per_image.items()},
    )


def _num_bytes(vision: Vision) -> int:
    return sum(
        values.nbytes for values in (vision.embeddings_PD, *vision.per_token.values(), *vision.per_image.values())
    )
