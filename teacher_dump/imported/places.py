"""Where a sample's positions are in another tool's sequence of tokens.

All text tokens must be equal. An image may be there

* expanded: as many tokens as the checkpoint makes of it. Where the checkpoint's own ids have one entry per vision token
  these must be equal too; MobileVLM has no id for them, so any id is accepted.
* as one placeholder of any id, if the image's vision tokens are consecutive.

T ids of the sample, L positions, S tokens of the other sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignkd.teacher_dump.imported.row import ForeignRow
from alignkd.vlm.errors import SampleError
from alignkd.vlm.inputs.examples import Tokens
from alignkd.vlm.inputs.labels import IMAGE_TOKEN_ID

ANY = -1
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Form:
    """A form in which another tool may write the sample.

    Attributes:
        expected: id of each token, ANY where every id is accepted; int64 [S].
        positions: the sample's position of each token, int64 [S]; an image's placeholder has that of its first token.
    """

    expected: NDArray[np.int64]
    positions: NDArray[np.int64]


def places_in(row: ForeignRow, tokens: Tokens, decode: Decode) -> NDArray[np.int64]:
    """For each of the L positions its place in the row's sequence, -1 where it has none; int64 [L].

    Raises:
        SampleError: the tokens differ; names the position and both ids.
    """
    assert row.tokens is not None
    forms = list(_forms(tokens))
    for form in forms:
        for length in row.lengths:
            if length == len(form.expected) and not len(_differing(form, row.tokens[:length])):
                return _inverse(form.positions, tokens.positions.length)
    raise SampleError(_difference(_nearest(forms, row), row, decode))


def spliced_ids(tokens: Tokens) -> NDArray[np.int64]:
    """The id at each position, ANY at vision tokens that have none; int64 [L]."""
    return next(_forms(tokens)).expected


def known_forms(tokens: Tokens) -> list[NDArray[np.int64]]:
    """The forms in which every id is known; none for a sample of MobileVLM with images."""
    return [form.expected for form in _forms(tokens) if not (form.expected == ANY).any()]


def _forms(tokens: Tokens) -> Iterator[_Form]:
    ids, positions = tokens.input_ids.astype(np.int64), tokens.positions
    L, vision = positions.length, positions.vision_positions
    if len(ids) == L and not (ids == IMAGE_TOKEN_ID).any():
        expanded = ids
    else:
        expanded = np.full(L, ANY, np.int64)
        expanded[positions.text_positions] = ids[ids != IMAGE_TOKEN_ID]
    every = np.arange(L, dtype=np.int64)
    yield _Form(expected=expanded, positions=every)
    images = np.split(vision, np.cumsum(positions.tokens_of_image)[:-1]) if len(vision) else []
    if images and all(int(image[-1]) - int(image[0]) + 1 == len(image) for image in images):
        firsts = [int(image[0]) for image in images]
        kept = np.setdiff1d(every, np.setdiff1d(vision, firsts))
        placeholder = expanded.copy()
        placeholder[firsts] = ANY
        yield _Form(expected=placeholder[kept], positions=kept)


def _differing(form: _Form, found: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero((form.expected != ANY) & (form.expected != found))


def _inverse(positions: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    places = np.full(length, -1, np.int64)
    places[positions] = np.arange(len(positions))
    return places


def _nearest(forms: Sequence[_Form], row: ForeignRow) -> _Form:
    """The form of the most similar length, for the message."""
    return min(forms, key=lambda form: abs(len(form.expected) - row.lengths[0]))


def _difference(form: _Form, row: ForeignRow, decode: Decode) -> str:
    assert row.tokens is not None
    length = min(row.lengths, key=lambda found: abs(found - len(form.expected)))
    found, common = row.tokens[:length], min(length, len(form.expected))
    cut = _Form(expected=form.expected[:common], positions=form.positions[:common])
    if len(differing := _differing(cut, found[:common])):
        at = int(differing[0])
        return (
            f"{row.where}: token {at} has id {_shown(int(found[at]), decode)}, the checkpoint makes "
            f"{_shown(int(form.expected[at]), decode)}; use the tokenizer and template with which the file was made"
        )
    rest, whose = (found, "the file") if length > common else (form.expected, "the checkpoint")
    return (
        f"{row.where}: has {length} tokens, the checkpoint makes {len(form.expected)}; token {common} of {whose} is "
        f"{_shown(int(rest[common]), decode)}; use the template with which the file was made, and do not cut it"
    )


def _shown(token: int, decode: Decode) -> str:
    if token == ANY:
        return "that of a vision token"
    try:
        text = decode([token])
    except (IndexError, KeyError, ValueError, OverflowError):
        return f"{token} (not an id of the checkpoint)"
    return f"{token} ({text!r:.40})"
