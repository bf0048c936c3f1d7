"""One record of two stores, or of a teacher and a student, side by side."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from alignkd.pipeline.browse.records.distance import Known, total_variations
from alignkd.pipeline.browse.records.page import LayerView, RecordPage
from alignkd.pipeline.browse.records.tokens import Token
from alignkd.pipeline.browse.records.views import RecordViews
from alignkd.pipeline.shards.view.attention.layer_attention import LayerAttention
from alignkd.storage.errors import StoreError
from alignkd.storage.tools.compare.diff import FieldDifference, compare_fields
from alignkd.vlm.errors import InputError

# the attention of one layer of each side
Layers = Callable[[int], tuple[LayerAttention, LayerAttention]]


@dataclass(frozen=True, kw_only=True)
class TokenDifference:
    """One text token on both sides.

    Attributes:
        number: number of the token on the first side.
        other: number of the same token on the second side.
        total_variation: of the distributions of this token (`distance.total_variation`); None where it is not
            supervised, or a side has no distribution.
        attention: sum over the vision tokens of the differences of attention, of the mean over heads of the first layer
            that both show; None where the token is no text query, or there is no such layer.
    """

    number: int
    other: int
    total_variation: float | None
    attention: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One record on two sides.

    Attributes:
        pages: the page of each side. That of a student is the record's with its own predictions and layers.
        differences: of the text tokens that both sides have, in their order.
        layers: the layers that both sides can show, with the heads that both have.
        fields: what `alignkd shards diff` finds for the record, fields that are equal included; none of a student.
        notes: lines that tell what differs otherwise, or cannot be compared.
    """

    pages: tuple[RecordPage, RecordPage]
    differences: tuple[TokenDifference, ...]
    layers: tuple[LayerView, ...]
    fields: tuple[FieldDifference, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "pages": [page.as_json() for page in self.pages],
            **{name: [asdict(one) for one in getattr(self, name)] for name in ("differences", "layers", "fields")},
            "notes": list(self.notes),
        }


def compare(first: RecordViews, second: RecordViews, key: str) -> Comparison:
    """The record with a key in two stores.

    Raises:
        StoreError: a store has no such record. CorruptStoreError: one of them is damaged.
    """
    places = [_position(views, key) for views in (first, second)]
    pages = first.record_page(places[0]), second.record_page(places[1])
    known = first.known_tokens(places[0]), second.known_tokens(places[1])

    def layers(number: int) -> tuple[LayerAttention, LayerAttention]:
        return first.layer(places[0], number), second.layer(places[1], number)

    fields = compare_fields(first.reader, second.reader, np.array([places], np.int64))
    notes = [
        f"{found.field} differs: {found.note or 'other values'}"
        for found in fields
        if found.records and found.max_abs is None and not found.field.startswith(("logits", "more.", "vision_"))
    ]
    return _comparison(pages, known, layers, fields, notes)


def compare_student(views: RecordViews, position: int) -> Comparison:
    """A record as the store's teacher and as the student see it; the first call loads the student.

    Raises:
        InputError: there is no student, it cannot be used with this store, or an image is not at hand.
        IndexError, StoreError: as `RecordViews.record_page`.
    """
    page, student = views.record_page(position), views.student_page(position)
    predictions = iter(student.predictions)
    tokens = [replace(token, prediction=next(predictions)) if token.supervised else token for token in page.tokens]
    other = replace(
        page,
        tokens=tuple(tokens),
        layers=student.layers if student.no_attention is None else (),
        no_attention=student.no_attention,
        no_predictions=None,
        is_estimate=False,
        perplexity=None,
        advantage=None,
    )
    known = views.known_tokens(position), views.known_tokens(position, student=True)

    def layers(number: int) -> tuple[LayerAttention, LayerAttention]:
        return views.layer(position, number), views.layer(position, number, student=True)

    return _comparison((page, other), known, layers, (), [])


def _comparison(
    pages: tuple[RecordPage, RecordPage],
    known: tuple[list[Known], list[Known]],
    layers: Layers,
    fields: Sequence[FieldDifference],
    notes: list[str],
) -> Comparison:
    pairs = _text_pairs(pages)
    if not pairs:
        notes.append("the text has other tokens: no token is compared")
    for page, side in zip(pages, ("first", "second"), strict=True):
        if page.no_predictions is not None:
            notes.append(f"{side}: {page.no_predictions}")
        if page.is_estimate:
            notes.append(f"{side}: probabilities are shares of draws, so distances are estimates, not lower bounds")
        elif any(token.prediction is not None and token.prediction.tail_mass is None for token in page.tokens):
            notes.append(f"{side}: probabilities are of the stored tokens alone, so distances are not lower bounds")
        if page.no_attention is not None and page.images:
            notes.append(f"{side}: {page.no_attention}")
    shared = _shared_layers(pages)
    distances = _distances(pages, known)
    attention: dict[int, float] = {}
    if shared and pairs:
        try:
            attention = _attention(pages, *layers(shared[0].layer))
        except InputError as error:
            notes.append(str(error))
            shared = []
    return Comparison(
        pages=pages,
        differences=tuple(
            TokenDifference(
                number=one.number,
                other=other.number,
                total_variation=distances.get(one.number),
                attention=attention.get(one.number),
            )
            for one, other in pairs
        ),
        layers=tuple(shared),
        fields=tuple(fields),
        notes=tuple(notes),
    )


def _position(views: RecordViews, key: str) -> int:
    found = views.reader.find(key=key)
    if not found:
        raise StoreError(f"store {views.reader.path}: no record with key {key[:64]!r}")
    return found[0]


def _text(page: RecordPage) -> list[Token]:
    return [token for token in page.tokens if token.image is None]


def _text_pairs(pages: tuple[RecordPage, RecordPage]) -> list[tuple[Token, Token]]:
    """The text tokens of both sides, one beside the other; none if their ids differ."""
    first, second = (_text(page) for page in pages)
    if [token.id for token in first] != [token.id for token in second]:
        return []
    return list(zip(first, second, strict=True))


def _shared_layers(pages: tuple[RecordPage, RecordPage]) -> list[LayerView]:
    """The layers of both sides; none if their vision tokens do not lie alike."""
    first, second = pages
    if [image.tokens for image in first.images] != [image.tokens for image in second.images]:
        return []
    others = {at.layer: at.heads for at in second.layers}
    return [replace(at, heads=min(at.heads, others[at.layer])) for at in first.layers if at.layer in others]


def _distances(pages: tuple[RecordPage, RecordPage], known: tuple[list[Known], list[Known]]) -> dict[int, float]:
    """Total variation distance by number of the supervised token on the first side."""
    first, second = ([token for token in _text(page) if token.supervised] for page in pages)
    if [token.id for token in first] != [token.id for token in second] or not all(known):
        return {}
    return dict(zip((token.number for token in first), total_variations(*known), strict=True))


def _attention(pages: tuple[RecordPage, RecordPage], first: LayerAttention, second: LayerAttention) -> dict[int, float]:
    """Difference of attention by number of the text query on the first side."""
    queries = [token for token in _text(pages[0]) if token.is_query]
    ours_QP, theirs_QP = first.values_HQP.mean(0), second.values_HQP.mean(0)
    if ours_QP.shape != theirs_QP.shape or len(queries) != len(ours_QP):
        return {}
    differences = np.abs(ours_QP - theirs_QP).sum(1)
    return {token.number: float(value) for token, value in zip(queries, differences, strict=True)}
