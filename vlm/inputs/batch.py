"""Right-padded batches of spliced sequences.

Attention is causal, so right padding needs no attention mask: real positions never attend to padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.templates import IGNORE_LABEL


@dataclass(frozen=True, kw_only=True)
class SequenceBatch:
    """B samples of at most L positions with I images between them.

    Attributes:
        input_ids_BL: int64, 0 at vision and padding positions (their embedding is replaced or unused).
        labels_BL: int64, `IGNORE_LABEL` at vision and padding positions.
        vision_mask_BL: bool, True at vision positions.
        lengths_B: int64, real positions per sample.
        pixel_values_ICHW: float32, image by image of each sample in turn, or None when no sample has an image.
        image_samples_I: int64, the batch row of each image, ascending.
    """

    input_ids_BL: Tensor
    labels_BL: Tensor
    vision_mask_BL: Tensor
    lengths_B: Tensor
    pixel_values_ICHW: Tensor | None
    image_samples_I: Tensor

    def to(self, device: torch.device | str) -> Self:
        """The batch with every tensor on `device`."""
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

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
    """Splice and right-pad `examples` into one batch."""
    num, length = len(examples), max(example.positions.length for example in examples)
    input_ids = np.zeros((num, length), np.int64)
    labels = np.full((num, length), IGNORE_LABEL, np.int64)
    vision_mask = np.zeros((num, length), np.bool_)
    for row, example in enumerate(examples):
        text, is_text = example.positions.text_positions, example.input_ids >= 0
        input_ids[row, text] = example.input_ids[is_text]
        labels[row, text] = example.labels[is_text]
        vision_mask[row, example.positions.vision_positions] = True
    pixels = [image for example in examples for image in example.pixel_values]
    num_images = [len(example.pixel_values) for example in examples]
    return SequenceBatch(
        input_ids_BL=torch.from_numpy(input_ids),
        labels_BL=torch.from_numpy(labels),
        vision_mask_BL=torch.from_numpy(vision_mask),
        lengths_B=torch.tensor([example.positions.length for example in examples]),
        pixel_values_ICHW=torch.from_numpy(np.stack(pixels)) if pixels else None,
        image_samples_I=torch.from_numpy(np.repeat(np.arange(num), num_images)),
    )


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
