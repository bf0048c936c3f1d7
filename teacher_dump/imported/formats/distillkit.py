"""DistillKit's parquet caches: compressed (`sample_logits_vllm`) or as plain top-k columns.

Its rows have no id and are in the order in which they were finished, so they are found by their tokens. Distribution j
of a row is of token j + 1: vLLM gives none for the first token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignkd.teacher_dump.imported.formats.parquet import ParquetRows
from alignkd.teacher_dump.imported.formats.polynomial import Compression, unpacked_ids, unpacked_logprobs
from alignkd.teacher_dump.imported.row import ForeignRow, unusable_row
from alignkd.vlm.errors import InputError

TOKENS = "input_ids"
COMPRESSED = ("compressed_logprobs", "bytepacked_indices")
PLAIN = ("top_values", "token_ids")
LEGACY = ("packed_indices", "exact_values", "coeffs")


@dataclass(frozen=True, kw_only=True)
class DistillKitFile:
    """The rows of one file.

    Attributes:
        path: the parquet file.
        compression: the settings that packed it; None if its columns are plain.
    """

    path: Path
    compression: Compression | None

    def __len__(self) -> int:
        """Number of rows."""
        return len(ParquetRows(self.path))

    def rows(self) -> Iterator[ForeignRow]:
        """Every row in the order of the file.

        Raises:
            InputError: the file is damaged, or its bytes do not have the width of the compression's settings.
        """
        values, ids = PLAIN if self.compression is None else COMPRESSED
        for number, columns in enumerate(ParquetRows(self.path).columns((TOKENS, values, ids))):
            where = f"{self.path} row {number}"
            tokens = columns[TOKENS]
            if tokens is None or columns[values] is None or columns[ids] is None:
                yield unusable_row(where, None, "a column is null")
                continue
            yield self._row(where, _flat(tokens).astype(np.int64), columns[values], columns[ids])

    def _row(self, where: str, tokens: NDArray[np.int64], values: Any, ids: Any) -> ForeignRow:
        if self.compression is None:
            logprobs, entries = _matrix(values, where, PLAIN[0]), _matrix(ids, where, PLAIN[1]).astype(np.int64)
        else:
            packed = [_matrix(column, where, name) for column, name in zip((values, ids), COMPRESSED, strict=True)]
            widths = (self.compression.value_bytes, self.compression.id_bytes)
            for found, width, name in zip(packed, widths, COMPRESSED, strict=True):
                if len(found) and found.shape[1] != width:
                    raise InputError(
                        f"{where}: {name} has {found.shape[1]} bytes per token, the compression settings make {width}; "
                        "give the compression_config.yaml that was written with these files (--compression)"
                    )
            logprobs = unpacked_logprobs(packed[0].reshape(-1, widths[0]).astype(np.uint8), self.compression)
            entries = unpacked_ids(packed[1].reshape(-1, widths[1]).astype(np.uint8), self.compression)
        if logprobs.shape != entries.shape or len(tokens) - len(logprobs) not in (0, 1):
            problem = f"{len(tokens)} input_ids, log-probabilities {logprobs.shape}, ids {entries.shape}"
            return unusable_row(where, None, f"{problem}: expected one distribution for each token after the first")
        M, k = logprobs.shape
        return ForeignRow(
            where=where,
            tokens=tokens,
            # the writer appends a padding token to shorter sequences
            lengths=(len(tokens), len(tokens) - 1),
            predicts=np.arange(1, M + 1),
            ids=entries.reshape(-1),
            logprobs=logprobs.astype(np.float32).reshape(-1),
            offsets=np.arange(M + 1, dtype=np.int64) * k,
        )


def _flat(column: Any) -> NDArray[Any]:
    found: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return found


def _matrix(column: Any, where: str, name: str) -> NDArray[Any]:
    """A list of lists of one length, [M, width]."""
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    if len(lengths) and (np.isnan(lengths.astype(np.float64)).any() or (lengths != lengths[0]).any()):
        raise InputError(f"{where}: {name} has lists of different lengths; the file was not written by DistillKit")
    width = int(lengths[0]) if len(lengths) else 0
    return _flat(column.flatten()).reshape(len(lengths), width)
