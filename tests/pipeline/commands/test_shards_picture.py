"""The attention map lies where the vision tower looked: seen through the image pre-processing itself."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alignkd.pipeline.shards.view.attention.attention_map import attention_map, input_number
from alignkd.pipeline.shards.view.attention.extent import is_padded, map_extent
from alignkd.storage import Record
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.inputs.images import ImageProcessor

GRID, SIDE = 12, 336


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (301, 200), (64, 640), (240, 240)])
@pytest.mark.parametrize("padded", [True, False])
def test_a_spot_is_seen_by_the_patch_that_is_drawn_over_it(size: tuple[int, int], padded: bool) -> None:
    processor = ImageProcessor(SIDE, pad_to_square=padded)
    width, height = size
    left, right, bottom, top = map_extent(width, height, padded=padded, image_size=SIDE)
    rng = np.random.default_rng(width)
    seen = 0
    for _ in range(200):
        x, y = int(rng.integers(2, width - 2)), int(rng.integers(2, height - 2))
        column, row = (x + 0.5 - left) / (right - left) * GRID, (y + 0.5 - top) / (bottom - top) * GRID
        near_edge = min(column % 1, 1 - column % 1, row % 1, 1 - row % 1) < 0.2
        if seen == 3 or near_edge or not (0 < column < GRID and 0 < row < GRID):
            continue
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[y - 1 : y + 2, x - 1 : x + 2] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        black = io.BytesIO()
        Image.fromarray(np.zeros_like(pixels)).save(black, "PNG")
        changed = np.abs(processor(file.getvalue()) - processor(black.getvalue())).sum(0)
        patches = changed.reshape(GRID, SIDE // GRID, GRID, SIDE // GRID).sum((1, 3))
        assert divmod(int(patches.argmax()), GRID) == (int(row), int(column))
        seen += 1
    assert seen == 3


def test_the_map_of_a_head_and_of_a_token() -> None:
    from alignkd.storage import Codecs, LogitsCodec, Manifest, Shapes

    P, heads = 6, 2
    manifest = Manifest(
        fingerprint={"image_processor": ImageProcessor(56, pad_to_square=False).fingerprint},
        data_fingerprint={},
        shapes=Shapes(num_heads=heads, hidden_size=4, vision_tokens=P, vocab_size=50, vision_top_tokens=2),
        codecs=Codecs(logits=LogitsCodec(kind="none"), vision_top="none", vision_all="none"),
        num_samples=1,
        shard_size=1,
        seed=0,
    )
    attention = np.random.default_rng(0).random((3, heads, P)).astype(np.float32)
    ids = np.array([1, 7, -200, 8, 9, 8], np.int32)  # positions 0 1 (2..7) 8 9 10
    record = Record(
        key="0" * 64, id="x", index=0, conversations=[], images=("a.png",), image_sha256=("0" * 64,), input_ids=ids,
        labels=np.full(6, -100, np.int32), vision_positions=np.arange(2, 8, dtype=np.int32),
        tqv_query_positions=np.array([8, 9, 10], np.int32), supervised_positions=np.empty(0, np.int32),
        attention=attention[None],
    )  # fmt: skip
    assert [input_number(record, position) for position in (0, 1, 8, 9, 10)] == [0, 1, 3, 4, 5]
    assert is_padded(manifest) == (False, 56)
    pieces: Callable[[int], str] = {7: "a", 8: "\u2581b", 9: "9"}.__getitem__

    def draw(head: int | None = None, token: str | None = None) -> Any:
        return attention_map(record, manifest, pieces, head=head, token=token).values

    np.testing.assert_allclose(draw(), attention.mean((0, 1)).reshape(2, 3), rtol=1e-6)
    np.testing.assert_array_equal(draw(1, "10"), attention[2, 1].reshape(2, 3))
    np.testing.assert_array_equal(draw(0, "@8"), attention[0, 0].reshape(2, 3))
    np.testing.assert_array_equal(draw(0, "9"), attention[1, 0].reshape(2, 3))  # a position wins over a piece
    for token, message in (("b", "is at 2 positions; choose one of them"), ("a", "queries are at positions 8..10")):
        with pytest.raises(InputError, match=message):
            draw(0, token)


def test_golden_fingerprint_is_recognised(golden: Path) -> None:
    from alignkd.storage.schema.manifest import Manifest

    processor = ImageProcessor(336)
    manifest = Manifest.model_construct(fingerprint={"image_processor": processor.fingerprint})
    assert is_padded(manifest) == (True, 336)
    assert is_padded(Manifest.model_construct(fingerprint={})) == (True, 336)
