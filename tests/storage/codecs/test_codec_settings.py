"""Which settings a kind of logits takes, which codec a target takes; the profiles are settings like any other."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from alignkd.storage import PROFILES, Codecs, LogitsCodec, StoreError, profile_codecs
from alignkd.storage.codecs import codec_names
from alignkd.storage.codecs.settings import LOGITS_DEFAULTS, LogitsKind, dtypes_of_kind

EXAMPLES: dict[str, Any] = {"top_k": 4, "p": 0.9, "min_entries": 2, "max_entries": 2000, "num_draws": 50}


def settings_of(kind: str) -> dict[str, Any]:
    return {"kind": kind, **{name: EXAMPLES[name] for name in LOGITS_DEFAULTS[kind] if name in EXAMPLES}}


@pytest.mark.parametrize("kind", get_args(LogitsKind))
def test_each_kind_takes_exactly_its_settings(kind: str) -> None:
    settings, defaults = settings_of(kind), LOGITS_DEFAULTS[kind]
    assert LogitsCodec(**settings).model_dump(exclude_none=True) == defaults | settings
    for name in settings.keys() - {"kind"}:
        for left_out in ({}, {name: None}):
            given = {key: value for key, value in settings.items() if key != name} | left_out
            assert getattr(LogitsCodec(**given), name) == defaults[name]
    for name in EXAMPLES.keys() - settings.keys():
        with pytest.raises(ValidationError, match=f"{name} {EXAMPLES[name]} with kind '{kind}'; {name} belongs to"):
            LogitsCodec(**settings, **{name: EXAMPLES[name]})


@pytest.mark.parametrize("kind", get_args(LogitsKind))
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8_group", "sqrt_u8", "zip"])
def test_each_kind_takes_its_dtypes(kind: str, dtype: str) -> None:
    if dtype in dtypes_of_kind(kind):
        assert LogitsCodec(**settings_of(kind), dtype=dtype).dtype == dtype
    else:
        with pytest.raises(
            ValidationError, match=f"dtype '{dtype}' with kind '{kind}'; (expected one of|leave it out)"
        ):
            LogitsCodec(**settings_of(kind), dtype=dtype)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "nucleus", "p": 0.9, "min_entries": 9, "max_entries": 8}, "min_entries is 9, above max_entries 8"),
        ({"kind": "nucleus", "p": 0.0, "min_entries": 1, "max_entries": 8}, "greater than 0"),
        ({"kind": "nucleus", "p": 1.5, "min_entries": 1, "max_entries": 8}, "less than or equal to 1"),
        ({"kind": "sampled", "num_draws": 65536}, "less than or equal to 65535"),
        ({"kind": "topk", "top_k": 0}, "greater than or equal to 1"),
        ({"kind": "topk", "top_k": 3, "temperature": 2}, "Extra inputs are not permitted"),
        ({"kind": "best"}, "Input should be 'full', 'topk', 'nucleus', 'hidden', 'sampled' or 'none'"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LogitsCodec(**settings)


@pytest.mark.parametrize(
    ("target", "others"), [("attention", ["none"]), ("vision_top", ["none", "from_all"]), ("vision_all", ["none"])]
)
def test_each_target_takes_its_codecs(target: str, others: list[str]) -> None:
    allowed = {*codec_names(target), *others}
    for name in {*allowed, *codec_names("hidden"), "sqrt_u8", "int8_channel", "from_all", "zip"}:
        settings: dict[str, Any] = {target: name, "logits": {"kind": "none"}}
        if name in allowed:
            assert getattr(Codecs(**settings), target) == name
            continue
        with pytest.raises(ValidationError, match=f"codec is '{name}', expected one of float32, float16, bfloat16"):
            Codecs(**settings)


def test_from_all_needs_all() -> None:
    with pytest.raises(ValidationError, match="vision_top is from_all but vision_all is none: keep vision_all or"):
        Codecs(vision_top="from_all", vision_all="none", logits=LogitsCodec(kind="none"))


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_plain_settings(name: str) -> None:
    settings = profile_codecs(name)
    made = Codecs(**settings).model_dump(exclude_none=True)
    assert {key: made[key] for key in settings} == settings
    settings["logits"]["kind"] = "none"
    assert profile_codecs(name)["logits"]["kind"] != "none"


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(StoreError, match="profile is 'tiny', expected one of exact, compact"):
        profile_codecs("tiny")
