"""The position map against a splice done by hand."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.inputs.labels import IGNORE_LABEL, IMAGE_TOKEN_ID
from alignkd.vlm.inputs.position_map import AttentionPairs, position_map


@given(st.data(), st.integers(1, 20), st.integers(1, 9), st.integers(0, 4))
def test_equals_a_splice_by_hand(data: st.DataObject, num_text: int, vision_tokens: int, num_images: int) -> None:
    labels = data.draw(st.lists(st.sampled_from([IGNORE_LABEL, 3, 7]), min_size=num_text, max_size=num_text))
    ids = list(range(10, 10 + num_text))
    for _ in range(num_images):
        at = data.draw(st.integers(0, len(ids)))
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
    assert (got.length, got.num_images) == (len(kinds), num_images)
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


def test_an_attention_block_per_image() -> None:
    positions = position_map([1, IMAGE_TOKEN_ID, 5, IMAGE_TOKEN_ID, 6, 7], [IGNORE_LABEL] * 6, vision_tokens=2)
    assert positions.vision_positions.tolist() == [1, 2, 4, 5] and positions.tqv_query_positions.tolist() == [6, 7]

    def blocks(pairs: AttentionPairs) -> list[tuple[list[int], list[int]]]:
        return [(rows.tolist(), cols.tolist()) for rows, cols in positions.attention_blocks(pairs)]

    assert blocks("tqv") == [([6, 7], [1, 2]), ([6, 7], [4, 5])]
    assert blocks("vqv") == [([1, 2, 4, 5], [1, 2]), ([1, 2, 4, 5], [4, 5])]
    assert blocks("tqt") == [([6, 7], [0, 3, 6, 7])]
    assert position_map([1, 5], [IGNORE_LABEL] * 2, vision_tokens=2).attention_blocks("tqv") == []


def test_positions_are_int32() -> None:
    positions = position_map([1, IMAGE_TOKEN_ID, 5], [IGNORE_LABEL, IGNORE_LABEL, 5], vision_tokens=2)
    assert {positions.vision_positions.dtype, positions.supervised_positions.dtype} == {np.dtype(np.int32)}
