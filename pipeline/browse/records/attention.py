"""The attention of a record's text to its images, as numbers: what the page of a record draws."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.pipeline.shards.view.attention.attention_map import on_grids, shown_values
from alignkd.pipeline.shards.view.attention.grids import Grid
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention
from alignkd.pipeline.shards.view.attention.top_tokens import top_tokens
from alignkd.storage.record.record import Record
from alignkd.vlm.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """The attention of one head and one text query of a layer, or of the mean over heads or queries.

    Attributes:
        maps: for each image float32 [rows, columns].
        top: numbers of the vision tokens with the most attention, largest first, counted through all images; as many
            as the focus loss takes. Without head and query, in the first layer, they are the tokens of the focus loss.
        layer: number of the layer.
        source: where it comes from: `stored`, `stem` or `student`.
    """

    maps: tuple[NDArray[np.float32], ...]
    top: tuple[int, ...]
    layer: int
    source: str

    def as_json(self) -> dict[str, object]:
        """Plain values."""
        maps = [{"rows": len(one), "columns": one.shape[1], "values": one.ravel().tolist()} for one in self.maps]
        return {"maps": maps, "top": list(self.top), "layer": self.layer, "source": self.source}


def attention_of(
    record: Record, attention: LayerAttention, grids: list[Grid], *, head: int | None, query: int | None, count: int
) -> Attention:
    """One head and one query of a layer.

    Args:
        grids: rows and columns of each image's vision tokens.
        head: number of the head; None for the mean over heads.
        query: position of the text query; None for the mean over queries.
        count: number of vision tokens in `Attention.top`.

    Raises:
        InputError: no such head or query.
    """
    row = None if query is None else _row_of(record, query)
    values = shown_values(attention, head=head, row=row)
    return Attention(
        maps=tuple(on_grids(record, values, grids)),
        top=tuple(top_tokens(values, count)),
        layer=attention.layer,
        source=attention.source,
    )


def _row_of(record: Record, query: int) -> int:
    rows = np.flatnonzero(record.tqv_query_positions == query)
    if not len(rows):
        raise InputError(f"position {query} is not a text query of sample {record.id!r} (index {record.index})")
    return int(rows[0])
