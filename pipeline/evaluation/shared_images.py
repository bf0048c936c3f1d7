"""The encoded images of a window of questions: tower and projector run once for each distinct image.

GQA asks 31 questions about an image on average, POPE 18, MME 2.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from alignkd.teacher_dump.preparation import Prepared
from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.inputs.packed_images import PackedImages


class SharedImages:
    """Encodes images, and keeps those that later prompts of the window show.

    Args:
        prompts: those of the window, each with one image or none.
    """

    def __init__(self, model: VisionLanguageModel, prompts: Iterable[Prepared]) -> None:
        self._model = model
        self._uses = Counter(image for prompt in prompts for image in prompt.image_hashes)
        self._kept: dict[str, Vision] = {}

    @torch.no_grad()
    def encoded(self, prompts: Sequence[Prepared]) -> Vision | None:
        """The images of some prompts, in their order; None if they have none."""
        new = {
            image: arrays
            for prompt in prompts
            for image, arrays in zip(prompt.image_hashes, prompt.images, strict=True)
            if image not in self._kept
        }
        if new:
            tensors = [
                {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in arrays.items()}
                for arrays in new.values()
            ]
            found = self._model.encode_images(PackedImages.of(tensors).to(self._model.device))
            self._kept |= zip(new, found.split(), strict=True)
        images = [self._kept[image] for prompt in prompts for image in prompt.image_hashes]
        return Vision.join(images) if images else None

    def answered(self, prompts: Iterable[Prepared]) -> None:
        """Drop the images that no later prompt shows."""
        for image in (image for prompt in prompts for image in prompt.image_hashes):
            self._uses[image] -= 1
            if not self._uses[image]:
                self._kept.pop(image, None)
