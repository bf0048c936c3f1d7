"""First-layer attention from one word of a question to the picture.

Shapes: P vision tokens in a grid of h x w over the square that the model sees, H heads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from alignkd.pipeline.demo.world.scenes import CELL_NAMES, COLUMN_NAMES, ROW_NAMES
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.templates import TemplateName
from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example

# Words for a part of the picture or for a digit; the last one in a question is its key word.
KEY_WORDS = frozenset(chain(*CELL_NAMES, ROW_NAMES, COLUMN_NAMES, "0123456789"))
_LAST_WORD = "?"


@dataclass(frozen=True, kw_only=True)
class AttentionMap:
    """One model's attention for one question.

    Attributes:
        word: the key word, whose attention this is.
        pixels_HWC: the picture as the model sees it, float32 0..1.
        shares_hw: attention to each vision token, mean over heads, float32; sums to at most 1.
    """

    word: str
    pixels_HWC: NDArray[np.float32]
    shares_hw: NDArray[np.float32]


@torch.no_grad()
def attention_maps(
    checkpoint: Path, questions: Sequence[Sample], images: Path, *, template: TemplateName, vision_config: Path | None
) -> list[AttentionMap]:
    """The attention of a checkpoint for each question; every question must have an image."""
    opened = MobileVLMCheckpoint.open(checkpoint, vision_config=vision_config)
    builder, model = opened.preparation(template), opened.load_model()
    maps = []
    for sample in questions:
        example = builder.build_question(sample.turns[:1], read_images(images, sample.images))
        batch, (word, row) = collate_sequences([example]), key_position(example, builder.tokenizer)
        embeds_BLD = model.embed(batch, model.encode_images(batch.images))
        columns_BC = torch.from_numpy(example.positions.vision_positions).long()[None]
        probs_BHRC = model.first_layer_attention(embeds_BLD, torch.tensor([[row]]), columns_BC)
        side = model.config.vision_grid
        shares_hw = probs_BHRC[0, :, 0].mean(dim=0).reshape(side, side).numpy()
        maps.append(AttentionMap(word=word, pixels_HWC=_pixels(example, builder), shares_hw=shares_hw))
    return maps


def key_position(example: Example, tokenizer: LegacyLlamaTokenizer) -> tuple[str, int]:
    """The key word of a question, or its question mark, and the position in the spliced sequence."""
    words = [tokenizer.piece(int(token)).strip("\u2581") for token in example.input_ids if token >= 0]
    positions = example.positions.text_positions
    for wanted in (KEY_WORDS, {_LAST_WORD}):
        found = [number for number, word in enumerate(words) if word in wanted]
        if found:
            return words[found[-1]], int(positions[found[-1]])
    return words[-1], int(positions[-1])


def _pixels(example: Example, builder: MobileVLMPreparation) -> NDArray[np.float32]:
    """The pixel values before normalisation."""
    (image,) = example.images
    pixels_CHW = image["pixel_values"].astype(np.float32)
    processor = builder.image_processor
    mean, std = np.array(processor.mean, np.float32), np.array(processor.std, np.float32)
    pixels_HWC: NDArray[np.float32] = np.clip(pixels_CHW.transpose(1, 2, 0) * std + mean, 0, 1)
    return pixels_HWC
