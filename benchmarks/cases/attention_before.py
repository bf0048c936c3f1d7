"""The attention loss as it was: the memory order of queries and keys, and the size of chunks, before both were changed.

Both apply to the code of the product as it is, so that before and after are measured in one process. Chunks also made
their own masks before; that is not repeated here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from torch import Tensor

from alignkd.vlm.attention.attention_rows import RowInputs
from alignkd.vlm.families.mobilevlm.model import attention as llama_attention

# MiB of a chunk of rows, on every device.
CHUNK_MIB = 8


@contextmanager
def as_projected() -> Iterator[None]:
    """Queries and keys keep the memory order of the projections [B, L, H, d], so that products copy them per chunk."""

    def in_order_of_projection(model: Any, *projected: Tensor) -> tuple[Tensor, Tensor]:
        query_BHRd, key_BHLd = real(model, *projected)
        query_BHRd, key_BHLd = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query_BHRd, key_BHLd))
        return query_BHRd, key_BHLd

    real = llama_attention._rotated
    order = patch.object(llama_attention, "_rotated", in_order_of_projection)
    with order, patch.object(RowInputs, "contiguous", lambda inputs: inputs):
        yield
