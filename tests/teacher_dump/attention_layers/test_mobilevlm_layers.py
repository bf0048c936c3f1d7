"""MobileVLM: what a dump stores of chosen layers is what transformers' eager attention gives."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from alignkd.storage import Record, RecordError
from alignkd.storage.codecs import codec_names, get_codec
from alignkd.storage.record.encoded import EncodedArray, as_float32, error_bound
from alignkd.storage.schema.targets.attention import LAYER_PAIRS, NAMES
from alignkd.teacher_dump.targets.device_codecs import StoredParts, encode, joined

Dumped = Callable[..., dict[str, Record]]
LayersOf = Callable[[Record], list[NDArray[np.float32]]]
EVERY = "0%-100%"
# layers as written, their numbers of the teacher's four, pairs, heads as written, stored heads
CHOICES = [
    ([0, 1], (0, 1), "all", "all", 8),
    ([3], (3,), "vqv", "mean", 1),
    ("30%-70%", (2,), "all", {"groups": 2}, 2),
    (EVERY, (0, 1, 2, 3), "tqv", {"groups": 8}, 8),
]


def expected(layers: list[NDArray[Any]], record: Record, numbers: tuple[int, ...], heads: int, pairs: str) -> Any:
    """[R, layers * heads, C] by loops over layers and groups of heads."""
    rows = record.vision_positions if pairs == "vqv" else record.tqv_query_positions
    found = []
    for number in numbers:
        attention_HRC = layers[number][:, rows][:, :, record.vision_positions]
        found += [group.mean(axis=0) for group in np.split(attention_HRC, heads)]
    return np.stack(found, axis=1)


@pytest.mark.parametrize(
    ("layers", "numbers", "pairs", "heads", "stored", "backend"),
    [*((*choice, "zarr") for choice in CHOICES), (*CHOICES[2], "webdataset")],
)
def test_stored_layers_are_those_of_eager_attention(
    dumped: Dumped, eager: LayersOf, layers: Any, numbers: Any, pairs: str, heads: Any, stored: int, backend: str
) -> None:
    settings = {"layers": layers, "pairs": pairs, "heads": heads, "codec": "float32"}
    records = dumped(attention=settings, backend=backend)
    assert {record.num_images for record in records.values()} == {0, 1}
    for record in records.values():
        assert record.attention is None
        kinds = LAYER_PAIRS if pairs == "all" else (pairs,)
        of_images = {NAMES[kind] for kind in kinds} if record.has_image else set()
        assert record.more.keys() == {"sequence_logprob", *of_images}
        for kind in kinds if record.has_image else ():
            found = as_float32(record.more[NAMES[kind]])
            np.testing.assert_allclose(
                found, expected(eager(record), record, numbers, stored, kind), rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("pairs", LAYER_PAIRS)
def test_layer_0_is_the_short_forms_attention(
    make_job: Any, dumped: Dumped, exact_records: dict[str, Record], pairs: str, tmp_path_factory: Any
) -> None:
    """The same numbers, and so the same focus tokens."""
    long = dumped(attention={"layers": [0, 2], "pairs": pairs, "codec": "float32"})
    if pairs == "tqv":
        short = exact_records
    else:
        short = dumped(attention="float32", attention_pairs=pairs, path=tmp_path_factory.mktemp("short") / "store")
    assert short.keys() == long.keys()
    for name, record in short.items():
        if record.attention is not None:
            blocks = np.concatenate(list(as_float32(record.attention)), axis=-1)
            np.testing.assert_array_equal(as_float32(long[name].more[NAMES[pairs]])[:, :8], blocks)
            np.testing.assert_array_equal(long[name].vision_top_index, record.vision_top_index)


@pytest.mark.parametrize("codec", codec_names("attention"))
def test_layers_encoded_one_by_one_are_all_layers_encoded_at_once(codec: str) -> None:
    random = torch.Generator().manual_seed(0)
    layers = [torch.rand(5, 3, 40, generator=random) ** 8 / 40 for _ in range(4)]  # [R, G, C]
    parts = [{name: part.numpy() for name, part in encode(codec, layer).items()} for layer in layers]
    found = joined([StoredParts(codec=codec, parts=one) for one in parts]).target("attention")
    wanted = get_codec(codec).encode(torch.cat(layers, dim=1).numpy())
    stored = found.parts if isinstance(found, EncodedArray) else {"": found}
    assert stored.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(stored[name], values)


def test_one_layer_that_is_not_finite_spoils_the_target() -> None:
    layers = [torch.rand(2, 1, 3), torch.rand(2, 1, 3)]
    layers[0][1, 0, 1] = torch.nan
    parts = [{name: part.numpy() for name, part in encode("float16", layer).items()} for layer in layers]
    with pytest.raises(RecordError, match="attention has values among its 12 that are NaN or infinite"):
        joined([StoredParts(codec="float16", parts=one) for one in parts]).target("attention")


@pytest.mark.parametrize("codec", ["float16", "bfloat16", "sqrt_u8"])
def test_stored_values_keep_the_codecs_error_bound(dumped: Dumped, codec: str, tmp_path_factory: Any) -> None:
    settings = {"layers": [0, 1, 3], "pairs": "all", "heads": {"groups": 4}}
    exact = dumped(attention={**settings, "codec": "float32"})
    found = dumped(attention={**settings, "codec": codec}, path=tmp_path_factory.mktemp("coded") / "store")
    for name, record in exact.items():
        assert record.more.keys() == found[name].more.keys()
        for target, values in record.more.items():
            if target == "sequence_logprob":
                continue  # always float32
            difference = np.abs(as_float32(found[name].more[target]) - as_float32(values))
            assert difference.max() > 0 and (difference <= error_bound(found[name].more[target]) + 1e-6).all()
