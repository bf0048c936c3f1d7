"""One image -> its arrays and the text of its tokens, by the checkpoint's own processor.

Each image is processed alone, so that its arrays can be kept and used in any sample. The text of its tokens depends on
its size only, which gives the tokens of a sample without its pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from alignkd.vlm.errors import ImageError, one_line
from alignkd.vlm.inputs.examples import ImageArrays, ImageSize

# What processors return beside the arrays of images.
_OF_TEXT = ("input_ids", "attention_mask", "labels", "text_replacement_offsets")
TYPE_IDS = "token_type_ids"
"""How the names of all arguments with a type for each token end."""
_KEPT_SIZES = 1024


@dataclass(frozen=True, kw_only=True)
class EncodedImage:
    """An image as the model takes it.

    Attributes:
        arrays: by the name of the model's argument; the first axis is that of the argument.
        replacement: the text of its tokens, in place of the template's placeholder.
    """

    arrays: ImageArrays
    replacement: str


@dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """The image side of a processor of transformers.

    Attributes:
        prompts: a rendered conversation with one image, and one with two.
        alone_differs: an image that is its sample's only one has other tokens than the same image beside others.
            Images beside others are processed as one of two equal images, and arrays with one row per sample are those
            of such a sample.
        on_meta: the processor computes shapes without pixels, on tensors of torch's `meta` device.
    """

    processor: Any
    prompts: tuple[str, str]
    alone_differs: bool = False
    on_meta: bool = False
    _replacements: dict[tuple[ImageSize, int], str] = field(default_factory=dict, repr=False, compare=False)

    def encode(self, image: Image.Image, among: int) -> EncodedImage:
        """Arrays and tokens of an RGB image.

        Args:
            among: number of images of its sample.

        Raises:
            ImageError: the processor refuses it.
        """
        copies = self.copies(among)
        try:
            arrays, replacements = self.process([image] * copies)
        except MemoryError:
            raise
        except Exception as error:  # each class of image processor has its own ways to refuse an image
            raise _refused(image.size, error) from error
        return EncodedImage(
            arrays={name: _first_of(array, copies) for name, array in arrays.items()}, replacement=replacements[0]
        )

    def replacement(self, size: ImageSize, among: int) -> str:
        """The text of the tokens of an image of this size.

        Args:
            among: number of images of its sample.

        Raises:
            ImageError: the processor refuses images of this size.
        """
        key = (size, self.copies(among))
        if (known := self._replacements.get(key)) is not None:
            return known
        if len(self._replacements) >= _KEPT_SIZES:
            self._replacements.clear()
        found = self._replacements[key] = self._of_size(*key)
        return found

    def process(self, images: Sequence[Image.Image]) -> tuple[dict[str, np.ndarray[Any, Any]], list[str]]:
        """Arrays of one or two images of one sample, and the text of each one's tokens.

        Raises:
            Exception: of any kind, whatever the processor raises.
        """
        found = self._call(images, return_tensors="pt")
        arrays = {
            name: np.ascontiguousarray(value.numpy())
            for name, value in found.items()
            if name not in _OF_TEXT and not name.endswith(TYPE_IDS)
        }
        return arrays, _replacements(found)

    def on_meta_of_size(self, size: ImageSize, copies: int) -> str:
        """As `replacement`, computed without pixels.

        Raises:
            Exception: of any kind, where the processor needs pixels or refuses the size.
        """
        width, height = size
        image = torch.empty(3, height, width, dtype=torch.uint8, device="meta")
        return _replacements(self._call([image] * copies, input_data_format="channels_first"))[0]

    def _of_size(self, size: ImageSize, copies: int) -> str:
        if self.on_meta:
            try:
                return self.on_meta_of_size(size, copies)
            except Exception:  # decided by an image of this size
                pass
        return self.encode(Image.new("RGB", size), copies).replacement

    def copies(self, among: int) -> int:
        """As how many equal images an image of a sample with `among` is processed: 1 or 2."""
        return 2 if self.alone_differs and among > 1 else 1

    def _call(self, images: Sequence[Any], **options: Any) -> Any:
        return self.processor(
            text=[self.prompts[len(images) - 1]], images=[list(images)], return_text_replacement_offsets=True, **options
        )


def _replacements(found: Any) -> list[str]:
    return [part["replacement"] for part in found["text_replacement_offsets"][0]]


def _first_of(array: np.ndarray[Any, Any], copies: int) -> np.ndarray[Any, Any]:
    """The rows of the first of several equal images; all of an array that has one row per sample."""
    return array[: len(array) // copies] if len(array) % copies == 0 else array


def _refused(size: ImageSize, error: Exception) -> ImageError:
    return ImageError(
        f"the image processor refuses an image of {size[0]} x {size[1]} pixels ({one_line(error)[:200]}); crop it"
    )
