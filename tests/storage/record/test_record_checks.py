"""A record is checked once, where it is made: what does not fit together is refused with both values."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from alignkd.storage import EncodedArray, HiddenStates, Manifest, Record, RecordError, SampledLogits, TruncatedLogits

SHA = "0" * 64
IMAGE = b"\x89PNG not really"
IMAGE_SHA = hashlib.sha256(IMAGE).hexdigest()


def base_fields(**changes: Any) -> dict[str, Any]:
    """Five text tokens around one image of three vision tokens: L = 7."""
    fields: dict[str, Any] = {
        "key": SHA,
        "id": "a",
        "index": 0,
        "conversations": [{"from": "human", "value": "x"}],
        "images": ("a.png",),
        "image_sha256": (SHA,),
        "input_ids": np.array([1, -200, 5, 6, 7], np.int32),
        "labels": np.array([-100, -100, -100, 6, 7], np.int32),
        "vision_positions": np.array([1, 2, 3], np.int32),
        "tqv_query_positions": np.array([4, 5, 6], np.int32),
        "supervised_positions": np.array([4, 5], np.int32),
        "attention": np.zeros((1, 3, 2, 3), np.float32),
        "vision_top_index": np.array([0, 2], np.uint16),
        "vision_top_embeddings": np.zeros((2, 4), np.float16),
        "vision_embeddings": (np.zeros((3, 4), np.float16),),
        "logits": np.zeros((2, 9), np.float32),
    }
    return fields | changes


def int32(*values: int) -> Any:
    return np.array(values, np.int32)


def encoded(codec: str, *shape: int) -> EncodedArray:
    return EncodedArray.encode(codec, np.ones(shape, np.float32))


def test_the_unchanged_fields_are_accepted() -> None:
    assert Record(**base_fields()).sequence_length == 7


def spliced(**changes: Any) -> dict[str, Any]:
    """The same sample with one id for every position: T = L = 7. The vision tokens are not contiguous."""
    return base_fields(
        **{
            "input_ids": int32(1, 30, 31, 30, 5, 6, 7),
            "labels": int32(-100, -100, -100, -100, -100, 6, 7),
            "vision_positions": int32(1, 3, 4),
            "tqv_query_positions": int32(5, 6),
            "attention": np.zeros((1, 2, 2, 3), np.float32),
        }
        | changes
    )


def test_ids_may_have_one_entry_for_every_position() -> None:
    record = Record(**spliced())
    assert (record.sequence_length, record.tokens_of_image) == (7, (3,))
    two = {"images": ("a.png", "b.png"), "image_sha256": (SHA, SHA), "tokens_of_image": (1, 2)}
    every = tuple(np.full((tokens, 4), tokens, np.float16) for tokens in (1, 2))
    found = Record(**spliced(**two, vision_embeddings=every))
    assert found.vision_embeddings_float32 is not None and found.vision_embeddings_float32[:, 0].tolist() == [1, 2, 2]
    assert found.tqv_attention is not None and found.tqv_attention.shape == (2, 2, 3)
    with pytest.raises(RecordError, match="supervised_positions are not the positions before labels"):
        Record(**spliced(supervised_positions=int32(3, 5)))
    with pytest.raises(RecordError, match=r"tokens_of_image is \(\), images 2"):  # no default: 3 tokens of 2 images
        Record(
            **spliced(
                **two | {"tokens_of_image": ()},
                vision_embeddings=None,
                vision_top_index=None,
                vision_top_embeddings=None,
            )
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"image_bytes": (IMAGE,), "image_sha256": (IMAGE_SHA,)},
        {"attention": encoded("sqrt_u8", 1, 3, 2, 3)},
        {"vision_embeddings": (encoded("int8_channel", 3, 4),), "vision_top_embeddings": encoded("bfloat16", 2, 4)},
        {"vision_top_embeddings": None},
        {"conversations": [{"from": "system", "value": "s"}, {"from": "gpt", "value": "x", "trained": False}]},
        {"conversations": [{"from": "gpt", "value": "x", "trained": False, "generated": True}]},
        {"logits": HiddenStates(states=encoded("int8_group", 2, 4))},
        {
            "logits": SampledLogits(
                ids=np.array([1, 2], np.uint16),
                counts=np.array([9, 9], np.uint8),
                offsets=np.array([0, 1, 2]),
                entropy=np.zeros(2, np.float32),
            )
        },
    ],
)
def test_every_form_of_a_target_is_accepted(changes: dict[str, Any]) -> None:
    Record(**base_fields(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "xyz"}, "key is 'xyz', expected 64 lower-case hex digits"),
        ({"image_sha256": ()}, "images has 1 paths, image_sha256 0 hashes"),
        ({"index": -1}, "index is -1"),
        ({"conversations": [{"role": "human"}]}, "conversations has a turn"),
        ({"conversations": [{"from": "gpt", "value": "x", "trained": True}]}, "'trained' only as false of a gpt turn"),
        ({"conversations": [{"from": "gpt", "value": "x", "trained": 0}]}, "'trained' only as false of a gpt turn"),
        (
            {"conversations": [{"from": "gpt", "value": "x", "generated": False}]},
            "'generated' only as true of a gpt turn",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "x", "generated": {"by": "t"}}]},
            "'generated' only as true of a gpt turn",
        ),
        (
            {"conversations": [{"from": "human", "value": "x", "generated": True}]},
            "'generated' only as true of a gpt turn",
        ),
        ({"conversations": [{"from": "human", "value": "x", "trained": False}]}, "'trained' only as false of a gpt"),
        ({"input_ids": np.array([1, -200, 5, 6, 7])}, "input_ids is int64, expected int32"),
        ({"input_ids": int32(1, -200, -200, 6, 7)}, r"input_ids holds 2 image tokens \(-200\), images has 1 paths"),
        # one id for every position: the positions do not fit five ids
        ({"input_ids": int32(1, 2, 5, 6, 7)}, r"tqv_query_positions spans 4..6, expected .* 0..4"),
        ({"tokens_of_image": (2,)}, r"vision_positions has shape \(3,\), tokens_of_image is \(2,\), images 1"),
        ({"tokens_of_image": (1, 2)}, r"tokens_of_image is \(1, 2\), images 1"),
        ({"labels": int32(-100, 6)}, r"labels has shape \(2,\), input_ids \(5,\)"),
        ({"vision_positions": int32()}, r"vision_positions has shape \(0,\)"),
        ({"tqv_query_positions": int32(4, 5, 7)}, r"tqv_query_positions spans 4..7, expected .* 0..6"),
        ({"tqv_query_positions": int32(5, 4)}, "rising positions"),
        ({"supervised_positions": int32(4)}, r"supervised_positions has shape \(1,\), labels supervise 2"),
        ({"attention": np.zeros((3, 2, 3), np.float32)}, r"attention has shape \(3, 2, 3\), expected 4 dimensions"),
        ({"attention": np.zeros((1, 3, 2, 3))}, "attention is float64, expected float16 or float32"),
        ({"attention": np.full((1, 3, 2, 3), np.nan, np.float32)}, "attention has 18 of 18 values that are NaN"),
        (
            {"vision_embeddings": (np.zeros((2, 4), np.float16),)},
            r"vision_embeddings have shapes \[\(2, 4\)\], tokens_of",
        ),
        ({"vision_embeddings": (np.zeros((1, 3, 4), np.float16),)}, r"has shape \(1, 3, 4\), expected 2 dimensions"),
        ({"vision_embeddings": np.zeros((3, 4), np.float16)}, "vision_embeddings is ndarray, expected a tuple"),
        ({"vision_embeddings": (np.full((3, 4), np.inf, np.float16),)}, "vision_embeddings has 12 of 12"),
        ({"vision_top_index": None}, "belong together"),
        ({"vision_top_index": np.array([0, 3], np.uint16)}, "distinct tokens below 3"),
        ({"vision_top_index": np.array([1, 1], np.uint16)}, "distinct tokens below 3"),
        ({"vision_top_index": np.array([1], np.uint16)}, r"vision_top_index has shape \(1,\)"),
        ({"logits": np.zeros((3, 9), np.float32)}, "logits has 3 positions"),
        ({"logits": np.full((2, 9), -np.inf, np.float32)}, "logits has 18 of 18"),
        ({"logits": [[0.0]]}, "logits is list"),
        ({"logits": HiddenStates(states=np.zeros((3, 4), np.float16))}, "logits has 3 positions"),
        ({"attention": encoded("sqrt_u8", 3, 2)}, r"attention has shape \(3, 2\), expected 4 dimensions"),
        (
            {"attention": encoded("int8_channel", 1, 3, 2, 3)},
            "is encoded as int8_channel, which cannot encode",
        ),
        ({"vision_embeddings": (encoded("int8_channel", 2, 4),)}, r"vision_embeddings have shapes \[\(2, 4\)\]"),
        ({"vision_embeddings": (encoded("int8_group", 3, 4),)}, "which cannot encode vision_all"),
        ({"more": {"x": np.zeros(3)}}, r"more\['x'\] is float64, expected float16 or float32"),
        ({"more": {"x": np.full(3, np.nan, np.float32)}}, r"more\['x'\] has 3 of 3 values that are NaN"),
        ({"vision_top_embeddings": encoded("bfloat16", 3, 4)}, r"has shape \(2,\), vision_top_embeddings \(3, 4\)"),
        ({"vision_top_embeddings": None, "vision_embeddings": None}, "belong together"),
        ({"image_bytes": (IMAGE,)}, rf"image_bytes \(15 bytes\) have sha256 {IMAGE_SHA[:12]}, image_sha256 is 0000000"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        Record(**base_fields(**changes))
    assert "\n" not in str(caught.value)


def truncated(**changes: Any) -> TruncatedLogits:
    fields: dict[str, Any] = {
        "ids": np.array([3, 4, 9], np.uint16),
        "logprobs": np.log(np.array([0.5, 0.25, 1.0])).astype(np.float32),
        "offsets": np.array([0, 2, 3]),
        "tail_logmass": np.array([np.log(0.25), -np.inf], np.float32),
    }
    return TruncatedLogits(**fields | changes)


def test_a_full_support_has_a_tail_of_minus_infinity() -> None:
    assert truncated().tail_logmass[1] == -np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offsets": np.array([0, 3])}, r"offsets has shape \(2,\), tail_logmass \(2,\)"),
        ({"offsets": np.array([0, 4, 3])}, "offsets must rise"),
        ({"offsets": np.array([1, 2, 3])}, "offsets must rise"),
        ({"offsets": np.array([0, 2, 4])}, "they end at 4, ids has 3"),
        ({"logprobs": np.zeros(3, np.float32)}, "position 0 hold mass 2.25"),
        ({"logprobs": np.array([-np.inf, 0, 0], np.float32)}, "logprobs has 1 of 3"),
        ({"tail_logmass": np.array([0, 0], np.float32)}, "position 0 hold mass 1.75"),
        ({"tail_logmass": np.array([np.nan, 0], np.float32)}, "position 0 hold mass nan"),
        ({"ids": np.array([3, 4, 9])}, "ids is int64, expected uint16 or uint32"),
    ],
)
def test_entries_and_tail_must_hold_the_whole_mass(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=message):
        truncated(**changes)


def test_a_renormalised_support_is_refused() -> None:
    """Dividing by the mass of the kept entries and keeping the true tail counts the tail twice."""
    with pytest.raises(RecordError, match="log-sum-exp over the whole vocabulary"):
        truncated(logprobs=np.log(np.array([2 / 3, 1 / 3, 1.0])).astype(np.float32))


def test_made_up_records_have_both_kinds(
    make_manifest: Callable[..., Manifest], make_record: Callable[..., Record]
) -> None:
    """The fixtures of this folder must not test text-only samples by name alone."""
    assert [make_record(make_manifest(), index).has_image for index in range(4)] == [True, True, True, False]
