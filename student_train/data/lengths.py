"""Lengths of the store's samples for a student that makes more or fewer tokens of an image than the teacher."""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader


def same_vision_tokens(reader: StoreReader, vision_tokens: int) -> bool:
    """Whether an image becomes as many tokens as for the teacher, so that positions are equal."""
    return reader.manifest.shapes.vision_tokens == vision_tokens


def sequence_lengths(reader: StoreReader, vision_tokens: int) -> NDArray[np.int64]:
    """Embedded tokens of each sample, int64 [n], for a student with `vision_tokens` per image."""
    more = vision_tokens - reader.manifest.shapes.vision_tokens
    return reader.sequence_lengths + more * reader.num_images
