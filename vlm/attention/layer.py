"""Queries and keys of an attention layer that alignment targets are taken from, recorded in a decoder pass.

Shapes: B samples, H query heads, L positions, R rows, C columns, d size of a head.
"""

from abc import ABC, abstractmethod

from torch import Tensor

from alignkd.vlm.attention.attention_rows import RowInputs, attention_rows


class AttentionLayer(ABC):
    """What `VisionLanguageModel.watched_layers` recorded of one decoder layer."""

    @property
    @abstractmethod
    def num_samples(self) -> int:
        """B, number of samples."""

    @abstractmethod
    def row_inputs(self, rows_BR: Tensor, samples_B: Tensor | None = None) -> RowInputs:
        """Queries of rows and keys, with gradient if the decoder ran with it.

        Args:
            rows_BR: int64 positions in 0..L-1.
            samples_B: int64, the sample of each row of `rows_BR`; None: sample b for row b.
        """

    def attention(
        self, rows_BR: Tensor, cols_BC: Tensor, samples_B: Tensor | None = None, *, chunk_bytes: int | None = None
    ) -> Tensor:
        """Attention of rows to columns: float32 [B, H, R, C] (float64 for float64), without gradient.

        Each row is a softmax over ALL keys that it attends to; the columns are selected afterwards, so rows sum to at
        most 1. A row that attends to none of the columns is 0 there.

        Args:
            rows_BR, cols_BC: int64 positions in 0..L-1; pad with 0 and mask the result.
            samples_B: see `row_inputs`.
            chunk_bytes: maximum bytes of the float32 [B, H, r, L] of the rows computed at a time (at least one row);
                None computes all rows at once.
        """
        return attention_rows(self.row_inputs(rows_BR, samples_B), cols_BC, chunk_bytes=chunk_bytes)
