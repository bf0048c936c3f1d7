"""A zarr shard opened by zarr-python, with targets as floats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from alignkd.storage import Codecs, LogitsCodec, Manifest, Shapes, StoreReader
from alignkd.storage.interop.float_view import FloatTarget, float_view

RAGGED = Shapes(num_heads=2, hidden_size=6, vision_tokens=None, vocab_size=40, vision_top_tokens=3)


@pytest.fixture(params=["compact", "exact", "float16", "ragged"])
def opened(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_manifest: Callable[..., Manifest],
    write_store: Callable[..., Path],
) -> tuple[StoreReader, Any]:
    """A store of one shard, and its group as zarr opens it."""
    attention, vision, hidden = {
        "compact": ("sqrt_u8", "int8_channel", "int8_group"),
        "exact": ("bfloat16", "bfloat16", "bfloat16"),
        "float16": ("float16", "float16", "float16"),
        "ragged": ("sqrt_u8", "int8_channel", "int8_group"),
    }[request.param]
    logits = LogitsCodec(kind="hidden", dtype=hidden)
    codecs = Codecs(attention=attention, vision_top=vision, vision_all=vision, logits=logits)
    shapes = RAGGED if request.param == "ragged" else make_manifest().shapes
    path = write_store(tmp_path / "store", make_manifest(codecs=codecs, shapes=shapes, shard_size=10))
    return StoreReader(path), zarr.open_group(path / "shards" / "00000000", mode="r")


def test_targets_read_as_our_own_reader_decodes_them(opened: tuple[StoreReader, Any]) -> None:
    reader, group = opened
    view = float_view(group)
    offsets, records = np.asarray(view["offsets"][:]), np.asarray(view["records"][:])
    groups, fields = group["offsets"].attrs["labels"], group["records"].attrs["labels"]
    for place, record in enumerate(reader):
        start, stop = offsets[place : place + 2]
        query = slice(start[groups.index("attention")], stop[groups.index("attention")])
        supervised = slice(start[groups.index("supervised")], stop[groups.index("supervised")])
        states = view["hidden_states"][supervised]
        assert states.dtype == np.float32
        np.testing.assert_array_equal(states, np.asarray(_floats(record.logits.states)))  # type: ignore[union-attr]
        if not record.has_image:
            continue
        expected = record.attention_float32
        assert expected is not None
        stored = view["attention"][query][..., : expected.shape[-1]]  # the columns of the widest record
        np.testing.assert_array_equal(stored.ravel(), expected.ravel())
        source = int(records[place, fields.index("image_record")])
        tokens = slice(*offsets[source : source + 2, groups.index("image_token")])
        np.testing.assert_array_equal(view["vision_embeddings"][tokens], record.vision_embeddings_float32)
        np.testing.assert_array_equal(
            view["vision_embeddings"][tokens.start],
            record.vision_embeddings_float32[0],  # type: ignore[index]
        )
        top = slice(start[groups.index("top")], stop[groups.index("top")])
        np.testing.assert_array_equal(view["vision_top_embeddings"][top], _floats(record.vision_top_embeddings))


def test_indices_are_those_of_an_array(opened: tuple[StoreReader, Any]) -> None:
    attention = float_view(opened[1])["attention"]
    whole = np.asarray(attention)
    assert isinstance(attention, FloatTarget) and repr(attention).startswith(
        f"FloatTarget({attention.codec!r}, float32["
    )
    assert (whole.dtype, whole.shape, len(attention)) == (np.float32, attention.shape, attention.shape[0])
    keys: tuple[Any, ...] = (3, -1, slice(2, 9), slice(None, None, 3), ..., (4, 1), (slice(1, 5), 0), (..., 2))
    for key in (*keys, (2, slice(None), 1), (np.array([5, 1]), slice(None), slice(0, 2))):
        np.testing.assert_array_equal(attention[key], whole[key])


def test_scales_are_left_out_and_other_arrays_stay(opened: tuple[StoreReader, Any]) -> None:
    _, group = opened
    view = float_view(group)
    assert set(view) == {name for name in group if not name.endswith("_scale")} and len(view) == len(list(view))
    assert {name for name in view if isinstance(view[name], FloatTarget)} == {
        *("attention", "vision_embeddings", "vision_top_embeddings", "hidden_states")
    }
    assert view["input_ids"][:].dtype == np.int32
    with pytest.raises(KeyError):
        view["nothing"]


def _floats(target: Any) -> Any:
    return target.decode() if hasattr(target, "decode") else target.astype(np.float32)
