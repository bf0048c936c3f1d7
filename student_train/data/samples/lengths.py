"""Whether the student makes as many tokens of an image as the teacher, and the lengths of its sequences."""

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.vlm.inputs.examples import Preparation


def same_vision_tokens(reader: StoreReader, preparation: Preparation) -> bool:
    """Whether an image becomes as many tokens as for the teacher, so that positions are equal.

    Where the number depends on the image, what decides it must be equal: the entry `vision_tokens` of the fingerprint.
    """
    stored, own = reader.manifest.shapes.vision_tokens, preparation.vision_tokens
    if stored is not None or own is not None:
        return stored == own
    return reader.manifest.fingerprint.get("vision_tokens") == preparation.fingerprint.get("vision_tokens")


def sequence_lengths(reader: StoreReader, vision_tokens: int | None) -> NDArray[np.int64]:
    """Embedded tokens of each sample, int64 [n].

    Args:
        vision_tokens: the student's tokens per image. If they depend on the image, or the teacher's do, the lengths are
            those of the teacher.
    """
    stored = reader.manifest.shapes.vision_tokens
    if vision_tokens is None or stored is None:
        return reader.sequence_lengths
    return reader.sequence_lengths + (vision_tokens - stored) * reader.num_images
