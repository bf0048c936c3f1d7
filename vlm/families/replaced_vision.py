"""Vision embeddings replaced by those of a neutral image: what a counterfactual pass gives to the decoder.

The neutral image of an image is an image of the same size whose every value is `NEUTRAL` after the processor's
normalisation, very nearly the processor's mean colour. It depends on the size of the image alone, so that both phases,
every worker and every batch use the same one. It has as many vision tokens as the image, in the same grid.

Shapes: I images, P vision tokens of all images.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from alignkd.vlm.families.family import Vision, VisionLanguageModel
from alignkd.vlm.inputs.batch import ImageTensors

# not 0: the models of the Idefics family take images of zeros for padding and leave them out
NEUTRAL = 2.0**-6


@torch.no_grad()
def neutral_vision(model: VisionLanguageModel, images: Sequence[ImageTensors], samples: Sequence[int]) -> Vision:
    """The neutral image of each image, encoded; without gradient.

    Args:
        images: the tensors of each image, at least one, on the model's device.
        samples: the sample of each image, ascending, as for `VisionLanguageModel.encode_images`.
    """
    if model.config.vision_tokens is not None:  # all images have one size
        return Vision.join([model.encode_images([_neutral(images[0])])] * len(images))
    return model.encode_images([_neutral(image) for image in images], samples)


def replaced_vision(vision: Vision, neutral: Vision, replaced_P: Tensor | None) -> Vision:
    """The embeddings of `vision`, and those of `neutral` where `replaced_P` is True.

    Args:
        vision: the images; with gradient, if it has one.
        neutral: their neutral images (`neutral_vision`).
        replaced_P: bool [P]; None replaces all.
    """
    assert vision.tokens_of_image == neutral.tokens_of_image, (vision.tokens_of_image, neutral.tokens_of_image)
    if replaced_P is None:
        return replace(neutral, features=None)

    def chosen(own: Tensor, other: Tensor) -> Tensor:
        return torch.where(replaced_P.view(-1, *(1,) * (own.dim() - 1)), other.to(own.dtype), own)

    return replace(
        vision,
        embeddings_PD=chosen(vision.embeddings_PD, neutral.embeddings_PD),
        per_token={name: chosen(values, neutral.per_token[name]) for name, values in vision.per_token.items()},
        features=None,
    )


def _neutral(image: ImageTensors) -> ImageTensors:
    """One value for all pixels; integers (sizes, grids, masks) as they are."""
    return {
        name: torch.full_like(values, NEUTRAL) if values.is_floating_point() else values
        for name, values in image.items()
    }
