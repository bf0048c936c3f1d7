"""The position map against a splice done by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.errors import SampleError
from vlm.position_map import position_map
from vlm.templates import IGNORE_LABEL, IMAGE_TOKEN_ID


@given(st.data(), st.integers(1, 20), st.integers(1, 9), st.booleans())
def test_equals_a_splice_by_hand(data: st.DataObject, num_text: int, vision_tokens: int, has_image: bool) -> None:
    labels = data.draw(st.lists(st.sampled_from([IGNORE_LABEL, 3, 7]), min_size=num_text, max_size=num_text))
    ids = list(range(10, 10 + num_text))
    if has_image:
        at = data.draw(st.integers(0, num_text))
        ids.insert(at, IMAGE_TOKEN_ID)
        labels.insert(at, IGNORE_LABEL)
    got = position_map(ids, labels, vision_tokens=vision_tokens)

    kinds, spliced = [], []
    for token, label in zip(ids, labels, strict=True):
        repeat = vision_tokens if token == IMAGE_TOKEN_ID else 1
        kinds += ["vision" if token == IMAGE_TOKEN_ID else "text"] * repeat
        spliced += [label] * repeat
    vision = [number for number, kind in enumerate(kinds) if kind == "vision"]
    text = [number for number, kind in enumerate(kinds) if kind == "text"]
    supervised = [number for number in range(len(kinds) - 1) if spliced[number + 1] != IGNORE_LABEL]
    assert got.length == len(kinds)
    assert got.vision_positions.tolist() == vision
    assert got.text_positions.tolist() == text
    assert got.tqv_query_positions.tolist() == [number for number in text if vision and number > vision[-1]]
    assert got.supervised_positions.tolist() == supervised
    assert got.next_labels.tolist() == [spliced[number + 1] for number in supervised]


def test_attention_pairs_name_rows_and_columns() -> None:
    positions = position_map([1, IMAGE_TOKEN_ID, 5, 6], [IGNORE_LABEL] * 4, vision_tokens=3)
    assert positions.attention_rows("tqv").tolist() == [4, 5]
    assert positions.attention_cols("tqv").tolist() == [1, 2, 3]
    assert positions.attention_cols("tqt").tolist() == [0, 4, 5]
    assert positions.attention_rows("vqv").tolist() == [1, 2, 3]


def test_two_images_are_refused() -> None:
    with pytest.raises(SampleError, match="2 images"):
        position_map([IMAGE_TOKEN_ID, 1, IMAGE_TOKEN_ID], [IGNORE_LABEL] * 3, vision_tokens=4)


def test_positions_are_int32() -> None:
    positions = position_map([1, IMAGE_TOKEN_ID, 5], [IGNORE_LABEL, IGNORE_LABEL, 5], vision_tokens=2)
    assert {positions.vision_positions.dtype, positions.supervised_positions.dtype} == {np.dtype(np.int32)}
