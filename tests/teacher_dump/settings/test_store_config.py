"""The configuration's section `store`: profiles, defaults, relations."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import LOGITS_DEFAULTS, PROFILES, LogitsCodec
from alignkd.teacher_dump.settings.store import StoreConfig


def config(**values: Any) -> StoreConfig:
    return StoreConfig(**{"path": "store"} | values)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_sets_what_is_not_given(name: Any) -> None:
    codecs = config(profile=name).codecs()
    expected = PROFILES[name]
    assert {key: getattr(codecs, key) for key in expected if key != "logits"} == {
        key: value for key, value in expected.items() if key != "logits"
    }
    assert codecs.logits.model_dump(exclude_none=True) == expected["logits"]
    given = config(profile=name, attention="float32", vision_all="none", vision_top="float16")
    assert (given.attention, given.vision_all, given.vision_top) == ("float32", "none", "float16")
    assert given.codecs().logits == codecs.logits


def test_logits_of_a_profile_yield_key_by_key_within_their_kind() -> None:
    assert config(profile="compact", logits={"p": 0.9}).codecs().logits.model_dump(exclude_none=True) == {
        "kind": "nucleus",
        "p": 0.9,
        "min_entries": 32,
        "max_entries": 1024,
        "dtype": "float16",
    }
    assert config(profile="compact", logits={"kind": "topk"}).codecs().logits.top_k == 64
    assert config(profile="exact", logits=LogitsCodec(dtype="int8_group", kind="hidden")).codecs().logits.dtype == (
        "int8_group"
    )


def test_a_resolved_configuration_reads_back_as_itself() -> None:
    for name in PROFILES:
        resolved = config(profile=name)
        assert StoreConfig(**resolved.model_dump(mode="json")) == resolved


@pytest.mark.parametrize("kind", LOGITS_DEFAULTS)
def test_a_kind_alone_means_its_defaults(kind: Any) -> None:
    made = config(logits={"kind": kind}).codecs().logits
    assert made.model_dump(exclude_none=True) == {"kind": kind, **LOGITS_DEFAULTS[kind]}
    assert config().codecs().logits.kind == "nucleus"


@pytest.mark.parametrize("codec", codec_names("attention"))
def test_every_codec_may_be_named(codec: str) -> None:
    assert config(attention=codec).codecs().attention == codec


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"profile": "tiny"}, ["profile", "'exact', 'compact' or 'stem'"]),
        ({"attention": "int8_channel"}, ["attention", "expected one of float32, float16, bfloat16, sqrt_u8, none"]),
        ({"vision_all": "sqrt_u8"}, ["vision_all", "expected one of float32, float16, bfloat16, int8_channel, none"]),
        ({"vision_top": "from_all", "vision_all": "none"}, ["'from_all'", "vision_all is 'none'"]),
        ({"profile": "exact", "vision_all": "none"}, ["'from_all'", "vision_all is 'none'"]),
        ({"vision_top": "from_all", "vision_all": "stem"}, ["'from_all'", "vision_all is 'stem'"]),
        ({"backend": "tape"}, ["backend"]),
        ({"inputs": "copy"}, ["inputs"]),
        (
            {"logits": {"kind": "full", "top_k": 3, "p": 0.5, "dtype": "bfloat16"}},
            ["top_k 3 with kind 'full'", "p 0.5 with kind 'full'", "dtype 'bfloat16' with kind 'full'"],
        ),
        (
            {"logits": {"kind": "nucleus", "min_entries": 9, "max_entries": 3}},
            ["min_entries is 9, above max_entries 3"],
        ),
        ({"logits": {"kind": "nucleus", "max_entries": 3}}, ["min_entries is 32, above max_entries 3"]),
        ({"logits": {"kind": "sampled", "dtype": "float16"}}, ["dtype 'float16'", "leave it out"]),
        ({"logits": {"kind": "sampled", "num_draws": 65536}}, ["num_draws", "65535"]),
        ({"logits": {"kind": "nucleus", "p": 1.5}}, ["logits.p"]),
        ({"seed": 2**64}, ["seed"]),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ValidationError) as error:
        config(**values)
    assert all(part in str(error.value) for part in named), str(error.value)


def test_a_store_may_lie_at_a_url() -> None:
    assert config(path="s3://bucket/stores/a").path == "s3://bucket/stores/a"
    assert config().path == Path("store")
