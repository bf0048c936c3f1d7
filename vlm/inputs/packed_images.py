"""The tensors of several images in few blocks: handed over and copied to a device at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self, overload

import torch
from torch import Tensor

# The tensors of ONE image by the name of the model's argument, see `examples.ImageArrays`.
ImageTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class PackedImages(Sequence[ImageTensors]):
    """The tensors of I images; `images[n]` are views.

    Attributes:
        blocks: by name, the tensors of that name of all images, flattened, one after the other.
        shapes: for each image, the shape of each of its tensors.
    """

    blocks: Mapping[str, Tensor]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, images: Sequence[ImageTensors]) -> "PackedImages":
        """Pack images; tensors of one name have one dtype. Packed images are returned as they are."""
        if isinstance(images, PackedImages):
            return images
        names = list(dict.fromkeys(name for image in images for name in image))
        blocks = {name: torch.cat([image[name].reshape(-1) for image in images if name in image]) for name in names}
        shapes = tuple({name: tuple(values.shape) for name, values in image.items()} for image in images)
        return cls(blocks, shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    @overload
    def __getitem__(self, index: int) -> ImageTensors: ...
    @overload
    def __getitem__(self, index: slice) -> list[ImageTensors]: ...
    def __getitem__(self, index: int | slice) -> ImageTensors | list[ImageTensors]:
        """The tensors of one image, or of several."""
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return {
            name: self.blocks[name].narrow(0, self._start(name, number), math.prod(shape)).view(shape)
            for name, shape in self.shapes[number].items()
        }

    def to(self, device: torch.device | str) -> Self:
        """The images on `device`: one copy per name."""
        return replace(self, blocks={name: block.to(device) for name, block in self.blocks.items()})

    def _start(self, name: str, number: int) -> int:
        return sum(math.prod(shapes[name]) for shapes in self.shapes[:number] if name in shapes)
