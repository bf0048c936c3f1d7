"""The teacher's `lm_head`, an attachment of a store: computes logits from hidden states in numpy, block by block."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.storage.errors import CorruptStoreError, repair_step
from alignkd.storage.schema.manifest import Manifest

LM_HEAD_FILE = "lm_head.safetensors"
LM_HEAD_KEY = "lm_head.weight"
MAX_HEADER_BYTES = 1 << 20
# rows of the vocabulary that are widened to float32 at a time: 32 MiB at 4096 channels
BLOCK_ROWS = 2048

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class LmHead:
    """The matrix [V, Dt], mapped from its file in its own dtype."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Map the file. The safetensors package cannot read bfloat16 into numpy.

        Raises:
            CorruptStoreError: not a safetensors file, or not this store's matrix.
        """
        shape = (manifest.shapes.vocab_size, manifest.shapes.hidden_size)
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                entry: dict[str, Any] = json.loads(file.read(min(size, MAX_HEADER_BYTES)))[LM_HEAD_KEY]
            found, start = tuple(entry["shape"]), int(entry["data_offsets"][0])
            if found != shape:
                raise CorruptStoreError(f"{path}: {LM_HEAD_KEY} has shape {found}, the store's teacher has {shape}")
            self._weight = np.memmap(path, _DTYPES[str(entry["dtype"])], "r", 8 + size + start, shape)
        except CorruptStoreError:
            raise
        except OSError as error:
            step = repair_step(error, "restore it from a copy")
            raise CorruptStoreError(f"{path}: {error.strerror}; {step}") from None
        except (ValueError, KeyError, TypeError, IndexError, OverflowError):
            raise CorruptStoreError(
                f"{path}: not a safetensors file with {LM_HEAD_KEY}; restore it from a copy"
            ) from None
        self._is_bfloat16 = entry["dtype"] == "BF16"

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [N, V] of states [N, Dt]."""
        return self._times(states, magnitude=False)

    def error_bound(self, state_bound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Largest error of logits, float32 [N, V], if `state_bound` [N, Dt] is the largest error of states."""
        return self._times(state_bound, magnitude=True)

    def _times(self, values: NDArray[np.float32], *, magnitude: bool) -> NDArray[np.float32]:
        out = np.empty((len(values), len(self._weight)), np.float32)
        for start in range(0, len(self._weight), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = self._floats(rows)
            out[:, rows] = values @ (np.abs(block) if magnitude else block).T
        return out

    def _floats(self, rows: slice) -> NDArray[np.float32]:
        block = np.asarray(self._weight[rows])
        if self._is_bfloat16:
            return (block.astype(np.uint32) << 16).view(np.float32)
        return block.astype(np.float32, copy=False)
