"""Targets with the attention of chosen layers: their place in a manifest, and the layers of a row."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alignkd.storage.schema.manifest import Manifest, parse_manifest
from alignkd.storage.schema.targets.attention import (
    NAMES,
    attention_target,
    attention_targets,
    rows_of_layer,
    with_codec,
)
from alignkd.storage.schema.targets.named import NamedTarget

MakeManifest = Callable[..., Manifest]
TQV = attention_target("tqv", layers=(1, 4, 5), heads=2, codec="sqrt_u8")
VQV = attention_target("vqv", layers=(1, 4), heads=3, codec="stem")


def test_a_manifest_holds_them_beside_others(make_manifest: MakeManifest) -> None:
    other = NamedTarget(name="answer", kind="values", codec="float32", rows="record")
    manifest = make_manifest(more=(TQV, other, VQV))
    again = parse_manifest(json.loads(json.dumps(manifest.model_dump(mode="json"))), "manifest.json")
    assert again == manifest and attention_targets(again.more) == {"tqv": TQV, "vqv": VQV}
    assert again.stored_more == (TQV, other) and again.gives_attention_by_stem
    assert again.from_stem == (*manifest.codecs.from_stem, NAMES["vqv"])


def test_another_codec_and_back() -> None:
    for codec in ("float16", "stem", "sqrt_u8"):
        changed = with_codec(TQV, codec)
        assert changed == attention_target("tqv", layers=TQV.layers, heads=2, codec=codec)
    assert with_codec(with_codec(TQV, "stem"), "sqrt_u8") == TQV


def test_the_share_of_each_layer() -> None:
    values = np.random.default_rng(0).random((7, 6, 9))
    parts = [rows_of_layer(values, TQV, layer) for layer in TQV.layers]
    assert {part.shape for part in parts} == {(7, 2, 9)} and all(np.shares_memory(part, values) for part in parts)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), values)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"rows": "vision"}, "rows is vision, expected tqv_query"),
        ({"kind": "values", "heads": None, "layers": (), "codec": "float32"}, "kind is values, expected attention"),
        ({"columns": "text"}, "columns is text, expected vision"),
        ({"layers": ()}, r"needs layers and heads, found \[\] and 2"),
    ],
)
def test_their_names_have_one_meaning(make_manifest: MakeManifest, changed: dict[str, Any], reason: str) -> None:
    target = NamedTarget.model_validate({**TQV.model_dump(), "codec": "sqrt_u8", **changed})
    with pytest.raises(ValueError, match=reason):
        make_manifest(more=(target,))
