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
LM_HEAD_BIAS_KEY = "lm_head.bias"
# in the file's metadata: logits are `scale * (states @ weight^T + bias)`, then `softcap * tanh(logits / softcap)`
NUMBERS = ("scale", "softcap")
MAX_HEADER_BYTES = 1 << 20
# rows of the vocabulary that are widened to float32 at a time: 32 MiB at 4096 channels
BLOCK_ROWS = 2048

_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


class LmHead:
    """The matrix [V, Dt], mapped from its file in its own dtype; bias, scale and soft cap if the teacher has them."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Map the file. The safetensors package cannot read bfloat16 into numpy.

        Raises:
            CorruptStoreError: not a safetensors file, or not this store's matrix.
        """
        shape = (manifest.shapes.vocab_size, manifest.shapes.hidden_size)
        try:
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                header: dict[str, Any] = json.loads(file.read(min(size, MAX_HEADER_BYTES)))
            found = tuple(header[LM_HEAD_KEY]["shape"])
            if found != shape:
                raise CorruptStoreError(f"{path}: {LM_HEAD_KEY} has shape {found}, the store's teacher has {shape}")
            self._weight, self._is_bfloat16 = _mapped(path, header[LM_HEAD_KEY], 8 + size, shape)
            self._bias = None
            if (entry := header.get(LM_HEAD_BIAS_KEY)) is not None:
                self._bias = _floats(*_mapped(path, entry, 8 + size, shape[:1]))
            numbers = {name: float(value) for name, value in header.get("__metadata__", {}).items() if name in NUMBERS}
            self._scale, self._softcap = numbers.get("scale", 1.0), numbers.get("softcap")
        except CorruptStoreError:
            raise
        except OSError as error:
            step = repair_step(error, "restore it from a copy")
            raise CorruptStoreError(f"{path}: {error.strerror}; {step}") from None
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, AttributeError):
            raise CorruptStoreError(
                f"{path}: not a safetensors file with {LM_HEAD_KEY}; restore it from a copy"
            ) from None

    def logits(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [N, V] of states [N, Dt]."""
        logits = self._times(states, magnitude=False)
        if self._bias is not None:
            logits += self._bias
        if self._scale != 1.0:
            logits *= np.float32(self._scale)
        if self._softcap is not None:
            cap = np.float32(self._softcap)
            logits = cap * np.tanh(logits / cap)
        return logits

    def error_bound(self, state_bound: NDArray[np.float32]) -> NDArray[np.float32]:
        """Largest error of logits, float32 [N, V], if `state_bound` [N, Dt] is the largest error of states.

        A soft cap makes no difference larger.
        """
        bound = self._times(state_bound, magnitude=True)
        return bound if self._scale == 1.0 else bound * np.float32(abs(self._scale))

    def _times(self, values: NDArray[np.float32], *, magnitude: bool) -> NDArray[np.float32]:
        out = np.empty((len(values), len(self._weight)), np.float32)
        for start in range(0, len(self._weight), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            block = _floats(self._weight[rows], self._is_bfloat16)
            out[:, rows] = values @ (np.abs(block) if magnitude else block).T
        return out


def _mapped(path: Path, entry: dict[str, Any], start: int, shape: tuple[int, ...]) -> tuple[NDArray[Any], bool]:
    """A tensor of a safetensors file whose data begin at `start`, and whether it is bfloat16."""
    dtype = _DTYPES[str(entry["dtype"])]
    return np.memmap(path, dtype, "r", start + int(entry["data_offsets"][0]), shape), entry["dtype"] == "BF16"


def _floats(values: NDArray[Any], is_bfloat16: bool) -> NDArray[np.float32]:
    values = np.asarray(values)
    if is_bfloat16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
