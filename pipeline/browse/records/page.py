"""The page of one record as plain values."""

from dataclasses import asdict, dataclass
from typing import Any

from alignkd.pipeline.browse.records.tokens import Token
from alignkd.pipeline.shards.view.attention.extent import Extent


@dataclass(frozen=True, kw_only=True)
class ImageView:
    """One image of a record.

    Attributes:
        name: its path in the data.
        sha256: of its file.
        tokens: its vision tokens.
        rows, columns: their grid.
        first: number of its first vision token among those of all images.
        width, height: in pixels; None if the file is not at hand.
        map_extent: left, right, bottom and top edge of the grid in pixels of the image, y downwards; None if the file
            is not at hand, or the tokens are in one row because their grid is not known.
        missing: why the file is not at hand; None if it is.
    """

    name: str
    sha256: str
    tokens: int
    rows: int
    columns: int
    first: int
    width: int | None
    height: int | None
    map_extent: Extent | None
    missing: str | None


@dataclass(frozen=True, kw_only=True)
class LayerView:
    """A layer whose attention can be shown.

    Attributes:
        heads: its heads, which are means of groups where the store has fewer than the teacher.
        source: `stored` or `stem`.
    """

    layer: int
    heads: int
    source: str


@dataclass(frozen=True, kw_only=True)
class RecordPage:
    """What the page of one record shows.

    Attributes:
        position: position in the reader.
        index: position in the data set.
        source: name of the data set.
        turns: the conversation; `from` and `value` are texts, with `trained` and `generated` where they are set.
        sequence_length: positions, vision tokens included.
        tokens: all tokens.
        images: all images.
        layers: the layers whose attention can be shown.
        no_attention: why there are none; None if there are some.
        no_predictions: why tokens have no predictions; None if they have.
        is_estimate: whether probabilities are shares of draws.
        perplexity: of the supervised text, if the store has its log-probability.
        advantage: mean visual advantage in nats, if the store has it.
    """

    position: int
    index: int
    key: str
    id: str
    source: str
    turns: tuple[dict[str, Any], ...]
    sequence_length: int
    tokens: tuple[Token, ...]
    images: tuple[ImageView, ...]
    layers: tuple[LayerView, ...]
    no_attention: str | None
    no_predictions: str | None
    is_estimate: bool
    perplexity: float | None
    advantage: float | None

    def as_json(self) -> dict[str, Any]:
        """Plain values: dicts, lists, texts and finite numbers."""
        return asdict(self)
