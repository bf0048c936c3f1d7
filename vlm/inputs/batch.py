"""Padded batches of sequences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.packed_images import ImageTensors, PackedImages

__all__ = ["ImageTensors", "SequenceBatch", "collate_sequences", "pad_positions", "true_places"]


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """B samples of at most L positions with I images between them.

    Attributes:
        input_ids_BL: int64, 0 at padding positions, and at vision positions where the ids of the samples have one id
            per image (their embedding is replaced).
        labels_BL: int64, `IGNORE_LABEL` at vision and padding positions.
        vision_mask_BL: bool, True at vision positions.
        vision_places_P: int64, the vision positions in the flattened [B * L], ascending; found on the host, so that no
            splice waits for a device to count a mask.
        lengths_B: int64, real positions per sample.
        images: the tensors of each image, image by image of each sample in turn; empty when no sample has an image.
        tokens_of_image: vision tokens of each image, plain integers.
        image_samples_I: int64, the batch row of each image, ascending; always on the host.
        types: int64 [B, L] by the name of the model's argument, 0 at padding positions.
        pads_left: whether padding comes before the real positions, as generation needs it, and not after them.
    """

    input_ids_BL: Tensor
    labels_BL: Tensor
    vision_mask_BL: Tensor
    vision_places_P: Tensor
    lengths_B: Tensor
    images: Sequence[ImageTensors]
    tokens_of_image: tuple[int, ...]
    image_samples_I: Tensor
    types: Mapping[str, Tensor] = field(default_factory=dict)
    pads_left: bool = False

    def to(self, device: torch.device | str) -> Self:
        """The batch with every tensor but `image_samples_I` on `device`."""
        moved: dict[str, Any] = {
            item.name: value.to(device)
            for item in fields(self)
            if isinstance(value := getattr(self, item.name), Tensor) and item.name != "image_samples_I"
        }
        moved["images"] = PackedImages.of(self.images).to(device)
        moved["types"] = {name: value.to(device) for name, value in self.types.items()}
        return replace(self, **moved)

    @property
    def attention_mask_BL(self) -> Tensor:
        """int64, 1 at real positions and 0 at padding."""
        positions_L = torch.arange(self.input_ids_BL.shape[1], device=self.lengths_B.device)
        if self.pads_left:
            positions_L = positions_L.flip(0)
        return (positions_L < self.lengths_B[:, None]).long()

    @property
    def is_padded(self) -> bool:
        """Whether any sample is shorter than the batch; waits for the device unless `lengths_B` is on the host."""
        return bool((self.lengths_B < self.input_ids_BL.shape[1]).any())

    def padded_left(self) -> Self:
        """A right-padded batch with its padding before the samples: every sample ends at the last position."""
        length = self.input_ids_BL.shape[1]
        shifts_B1 = length - self.lengths_B[:, None]
        index_BL = (torch.arange(length, device=self.lengths_B.device) - shifts_B1) % length
        vision_mask_BL = self.vision_mask_BL.gather(1, index_BL)
        return replace(
            self,
            input_ids_BL=self.input_ids_BL.gather(1, index_BL),
            labels_BL=self.labels_BL.gather(1, index_BL),
            vision_mask_BL=vision_mask_BL,
            vision_places_P=true_places(vision_mask_BL),
            types={name: values.gather(1, index_BL) for name, values in self.types.items()},
            pads_left=True,
        )

    def splice(self, embeds_BLD: Tensor, vision_PD: Tensor) -> Tensor:
        """Token embeddings with those of the vision tokens in their places; differentiable by both."""
        spliced_ND = embeds_BLD.flatten(0, 1).index_copy(0, self.vision_places_P, vision_PD.to(embeds_BLD.dtype))
        return spliced_ND.view_as(embeds_BLD)

    @property
    def supervised_mask_BL(self) -> Tensor:
        """bool, True at positions whose next token has a label."""
        mask = torch.zeros_like(self.vision_mask_BL)
        mask[:, :-1] = self.labels_BL[:, 1:] != IGNORE_LABEL
        return mask

    @property
    def supervised_labels_N(self) -> Tensor:
        """int64, the labels that follow the supervised positions, in row-major order."""
        return self.labels_BL[:, 1:][self.supervised_mask_BL[:, :-1]]


def collate_sequences(examples: Sequence[Example]) -> SequenceBatch:
    """Insert the vision positions of `examples` where their ids lack them, and right-pad them into one batch."""
    num, length = len(examples), max(example.positions.length for example in examples)
    input_ids = np.zeros((num, length), np.int64)
    labels = np.full((num, length), IGNORE_LABEL, np.int64)
    vision_mask = np.zeros((num, length), np.bool_)
    types = {name: np.zeros((num, length), np.int64) for example in examples for name in example.types}
    for row, example in enumerate(examples):
        positions = example.positions
        if len(example.input_ids) == positions.length:
            where: Any = slice(positions.length)
            input_ids[row, where], labels[row, where] = example.input_ids, example.labels
            # -200 stands for an image of a single token
            np.maximum(input_ids[row], 0, out=input_ids[row])
        else:
            where, is_text = positions.text_positions, example.input_ids >= 0
            input_ids[row, where] = example.input_ids[is_text]
            labels[row, where] = example.labels[is_text]
        vision_mask[row, positions.vision_positions] = True
        for name, values in example.types.items():
            types[name][row, : len(values)] = values
    counts = [example.positions.num_images for example in examples]
    return SequenceBatch(
        input_ids_BL=torch.from_numpy(input_ids),
        labels_BL=torch.from_numpy(labels),
        vision_mask_BL=torch.from_numpy(vision_mask),
        vision_places_P=true_places(torch.from_numpy(vision_mask)),
        lengths_B=torch.tensor([example.positions.length for example in examples]),
        images=PackedImages.of(
            [
                {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in image.items()}
                for example in examples
                for image in example.images
            ]
        ),
        tokens_of_image=tuple(count for example in examples for count in example.positions.tokens_of_image),
        image_samples_I=torch.from_numpy(np.repeat(np.arange(num), counts)),
        types={name: torch.from_numpy(values) for name, values in types.items()},
    )


def true_places(mask_BL: Tensor) -> Tensor:
    """int64, where a mask on the host is True in the flattened [B * L], ascending."""
    return mask_BL.flatten().nonzero()[:, 0]


def pad_positions(
    positions: Sequence[NDArray[np.int32]],
) -> tuple[Tensor, Tensor]:
    """Ragged positions -> (int64 [B, max] padded with 0, bool mask [B, max])."""
    width = max((len(row) for row in positions), default=0)
    padded = np.zeros((len(positions), width), np.int64)
    mask = np.zeros((len(positions), width), np.bool_)
    for number, row in enumerate(positions):
        padded[number, : len(row)] = row
        mask[number, : len(row)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)
