"""Batches padded on the left against rows put together one by one; vision embeddings in their places."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.inputs.batch import collate_sequences
from alignkd.vlm.inputs.examples import Example
from alignkd.vlm.inputs.labels import IGNORE_LABEL
from alignkd.vlm.inputs.position_map import spliced_position_map


def example_of(ids: list[int]) -> Example:
    """A text whose tokens from 50 on are vision tokens, and whose types are the ids' last digits."""
    array = np.asarray(ids, np.int32)
    labels = np.full(len(ids), IGNORE_LABEL, np.int32)
    is_vision = array >= 50
    count = int(is_vision.sum())
    positions = spliced_position_map(is_vision, labels, [count] if count else [], blocks_of_images=False)
    return Example(input_ids=array, labels=labels, positions=positions, types={"kind": array % 10})


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=6), min_size=1, max_size=4))
def test_every_row_ends_at_the_last_position(rows: list[list[int]]) -> None:
    right = collate_sequences([example_of(ids) for ids in rows])
    left = right.padded_left()
    width = max(map(len, rows))
    padded = [[0] * (width - len(ids)) + ids for ids in rows]
    assert left.input_ids_BL.tolist() == padded
    assert left.types["kind"].tolist() == [[token % 10 for token in row] for row in padded]
    assert left.vision_mask_BL.tolist() == [[token >= 50 for token in row] for row in padded]
    assert left.attention_mask_BL.tolist() == [[int(token > 0) for token in row] for row in padded]
    assert left.is_padded == right.is_padded == (len(set(map(len, rows))) > 1)
    assert left.vision_places_P.tolist() == [n for n, token in enumerate(chain(*padded)) if token >= 50]
    assert torch.equal(left.lengths_B, right.lengths_B)
    assert right.attention_mask_BL.sum(1).tolist() == left.attention_mask_BL.sum(1).tolist()


@pytest.mark.parametrize("pads_left", [False, True])
@pytest.mark.parametrize("rows", [[[1, 60, 61, 2]], [[3, 4], [60, 61, 5], [1, 2, 3, 70]], [[1, 2]]])
def test_vision_embeddings_are_where_the_mask_is(rows: list[list[int]], pads_left: bool) -> None:
    batch = collate_sequences([example_of(ids) for ids in rows])
    batch = batch.padded_left() if pads_left else batch
    embeds = torch.randn(*batch.input_ids_BL.shape, 3, dtype=torch.bfloat16, requires_grad=True)
    vision = torch.randn(sum(token >= 50 for ids in rows for token in ids), 3, requires_grad=True)
    found = batch.splice(embeds, vision)
    expected = embeds.masked_scatter(batch.vision_mask_BL[..., None], vision.bfloat16())
    assert torch.equal(found, expected)
    factor = torch.randn_like(found)
    gradients = (torch.autograd.grad((way * factor).sum(), (embeds, vision)) for way in (found, expected))
    for own, other in zip(*gradients, strict=True):
        assert torch.equal(own, other)
