"""How many elements each loss term has in a GLOBAL batch, from the store's index alone: no rank asks another."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from alignkd.storage import StoreReader
from alignkd.vlm.model.config import VLMConfig


class GlobalCounts:
    """Counts elements of any set of samples.

    Args:
        reader: the store.
        student: the student's shapes.
        terms: the loss terms that are computed.
    """

    def __init__(self, reader: StoreReader, student: VLMConfig, terms: Iterable[str]) -> None:
        vision_tokens, hidden_size = student.vision_tokens, student.hidden_size
        with_image = reader.has_image.astype(np.int64)
        per_sample = {
            "supervised": reader.num_supervised,
            "logit": reader.num_supervised,  # whatever the kind of logits
            "attention": student.num_heads * with_image * self._attention_pairs(reader, vision_tokens),
            "vision_all": reader.num_images * vision_tokens * hidden_size,
            "vision_focus": with_image * reader.manifest.shapes.vision_top_tokens * hidden_size,
        }
        self._per_sample = {term: per_sample[term] for term in terms}

    def __call__(self, positions: NDArray[np.int64]) -> dict[str, int]:
        """Elements by term over the samples at these store positions."""
        return {term: int(counts[positions].sum()) for term, counts in self._per_sample.items()}

    @staticmethod
    def _attention_pairs(reader: StoreReader, vision_tokens: int) -> NDArray[np.int64]:
        """Attention rows times columns of each sample that has an image."""
        pairs, vision_of_sample = reader.manifest.codecs.attention_pairs, reader.num_images * vision_tokens
        if pairs == "vqv":
            return vision_of_sample**2
        return reader.num_queries * (reader.sequence_lengths - vision_of_sample if pairs == "tqt" else vision_of_sample)
