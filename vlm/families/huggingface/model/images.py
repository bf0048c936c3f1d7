"""Encodes images with any model of transformers, and gives encoded images back to it.

`get_image_features` returns embeddings as a list per image, per tile or per sample, or as one tensor. Here they become
one flat matrix with the number of tokens of each image.
"""

import inspect
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from alignkd.vlm.families.family import Vision
from alignkd.vlm.hardware.memory_faults import may_be_out_of_memory
from alignkd.vlm.inputs.batch import ImageTensors

# LLaVA-OneVision: an image is divided into tiles only if it is the only one of its sample.
IMAGES_PER_SAMPLE = "batch_num_images"
_DEEPSTACK = "deepstack."


class UnjoinableError(ValueError):
    """The embeddings of several images in one call cannot be told apart."""


class ImageEncoder:
    """Encodes images with the base model of a model of transformers.

    Args:
        base_model: has `get_image_features`.
        joined: whether images of equal shapes are encoded in one call; else each in a call of its own.

    Attributes:
        returns_tensor: whether the model returns, and so expects, one tensor of all embeddings; known after a call.
    """

    def __init__(self, base_model: Any, *, joined: bool = True) -> None:
        self._base_model, self.joined = base_model, joined
        self.returns_tensor: bool | None = None
        self._arguments = tuple(inspect.signature(base_model.get_image_features).parameters)
        # arguments that decide the positions of text and image tokens, besides the ids
        rope_index = getattr(base_model, "get_rope_index", None)
        self._positional = () if rope_index is None else tuple(inspect.signature(rope_index).parameters)

    def encode(self, images: Sequence[ImageTensors], samples: Sequence[int] | None, dtype: torch.dtype) -> Vision:
        """All images, in their order; see `VisionLanguageModel.encode_images`."""
        encoded: list[Vision | None] = [None] * len(images)
        for numbers in self._groups(images, samples):
            group = [images[number] for number in numbers]
            found = self._encode_any_group(group, _shared(numbers, samples), dtype)
            for number, vision in zip(numbers, found, strict=True):
                encoded[number] = vision
        return Vision.join([vision for vision in encoded if vision is not None])

    def output(self, vision: Vision) -> BaseModelOutputWithPooling:
        """Encoded images in the form in which `get_image_features` returned them."""
        assert self.returns_tensor is not None, "no image was encoded yet"
        embeddings = vision.embeddings_PD
        output = BaseModelOutputWithPooling(pooler_output=embeddings if self.returns_tensor else [embeddings])
        deepstack = [values for name, values in vision.per_token.items() if name.startswith(_DEEPSTACK)]
        if deepstack:
            output.deepstack_features = [[values] for values in deepstack]
        return output

    def _groups(self, images: Sequence[ImageTensors], samples: Sequence[int] | None) -> list[list[int]]:
        if not self.joined:
            return [[number] for number in range(len(images))]
        groups: defaultdict[Any, list[int]] = defaultdict(list)
        for number, image in enumerate(images):
            shapes = tuple((name, tuple(values.shape)) for name, values in sorted(image.items()))
            groups[shapes, _shared([number], samples)].append(number)
        return list(groups.values())

    def _encode_any_group(self, images: Sequence[ImageTensors], is_shared: bool, dtype: torch.dtype) -> list[Vision]:
        """As `_encode_group`. A single image that the model refuses is tried as one of two equal images.

        Mistral 3 fails on an image with one vision token: it removes the axis of tokens with that of the batch.
        """
        try:
            return self._encode_group(images, is_shared, dtype)
        except RuntimeError as error:
            if len(images) > 1 or not self.joined or may_be_out_of_memory(error) or "CUDA" in str(error):
                raise
            try:
                return self._encode_group([*images, *images], is_shared, dtype)[:1]
            except RuntimeError:
                raise error from None

    def _encode_group(self, images: Sequence[ImageTensors], is_shared: bool, dtype: torch.dtype) -> list[Vision]:
        """Images of equal shapes: joined along the first axis of each argument."""
        names = [name for name in self._arguments if name in images[0] and name != IMAGES_PER_SAMPLE]
        arguments = {name: torch.cat([image[name] for image in images]) for name in names}
        arguments = {
            name: values.to(dtype) if values.is_floating_point() else values for name, values in arguments.items()
        }
        if IMAGES_PER_SAMPLE in self._arguments:
            arguments[IMAGES_PER_SAMPLE] = torch.tensor([max(2, len(images))] if is_shared else [1] * len(images))
        output = self._base_model.get_image_features(**arguments, return_dict=True)
        self.returns_tensor = isinstance(output.pooler_output, Tensor)
        tiles = [len(image[names[0]]) for image in images]
        embeddings = _by_image(output.pooler_output, tiles)
        deepstack = [_by_image(layer, tiles) for layer in getattr(output, "deepstack_features", None) or ()]
        return [
            Vision(
                embeddings_PD=embeddings[number],
                tokens_of_image=(len(embeddings[number]),),
                per_token={f"{_DEEPSTACK}{layer}": values[number] for layer, values in enumerate(deepstack)},
                per_image=self._per_image(image),
            )
            for number, image in enumerate(images)
        ]

    def _per_image(self, image: ImageTensors) -> Mapping[str, Tensor]:
        return {name: values for name, values in image.items() if name in self._positional}


def _by_image(pooled: Any, tiles: Sequence[int]) -> list[Tensor]:
    """Embeddings [P, D] of each image.

    Args:
        pooled: pieces as a list or as a tensor [pieces, tokens, D]; a piece is an image, or a tile of one.
        tiles: length of the first axis of the pixels of each image.

    Raises:
        UnjoinableError: the pieces are neither.
    """
    pieces = [pooled] if isinstance(pooled, Tensor) and pooled.dim() == 2 else list(pooled)
    flat = [piece.reshape(-1, piece.shape[-1]) for piece in pieces]
    if len(flat) == len(tiles):
        return flat
    if len(tiles) == 1:
        return [torch.cat(flat)]
    if len(flat) != sum(tiles):
        raise UnjoinableError(f"{len(flat)} pieces of {len(tiles)} images with {sum(tiles)} tiles")
    ends = itertools.accumulate(tiles)
    return [torch.cat(flat[end - count : end]) for end, count in zip(ends, tiles, strict=True)]


def _shared(numbers: Sequence[int], samples: Sequence[int] | None) -> bool:
    """Whether the sample of these images has several; they are alike in this."""
    return samples is not None and list(samples).count(samples[numbers[0]]) > 1
