"""`full`: every logit of every supervised position."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.codecs import get_codec
from alignkd.storage.codecs.base import Parts, ReadRows, Shape
from alignkd.storage.errors import StoreError
from alignkd.storage.record.encoded import FloatArray

COLUMN = "logits"


@dataclass(frozen=True)
class FullLogits:
    """Unnormalised logits [N, V] in float32 or float16, with the error of that codec."""

    vocab_size: int
    dtype: str
    value_type = np.ndarray

    def arrays(self) -> list[tuple[str, str, np.dtype[Any], Shape]]:
        return [(COLUMN, "supervised", get_codec(self.dtype).parts(())[""][0], (self.vocab_size,))]

    def encode(self, logits: FloatArray) -> Parts:
        """Raises:
        StoreError: another vocabulary.
        RecordError: a logit that the dtype cannot hold.
        """
        expected = (len(logits), self.vocab_size)
        if logits.shape != expected:
            raise StoreError(f"logits has shape {logits.shape}, the store expects {expected}")
        return {COLUMN: get_codec(self.dtype).encode(logits)[""]}

    def decode(self, read: ReadRows) -> NDArray[Any]:
        return read(COLUMN)

    def describe(self) -> dict[str, Any]:
        return {"codec_id": "full", "values": "unnormalised logits", **_described(self.dtype)}


def _described(dtype: str) -> dict[str, Any]:
    return {"dtype": dtype, "error_bound": get_codec(dtype).describe()["error_bound"]}
