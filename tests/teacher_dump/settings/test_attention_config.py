"""The section `store.attention`: profiles, what it makes of a teacher, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkd.teacher_dump.settings.store import StoreConfig
from alignkd.vlm.errors import InputError
from alignkd.vlm.families.mobilevlm.model.config import VLMConfig, load_config


@pytest.fixture
def teacher(golden: Path) -> VLMConfig:
    """Four layers with eight heads."""
    return load_config(golden / "teacher", vision_config=golden / "clip")


def config(attention: Any, **values: Any) -> StoreConfig:
    return StoreConfig(**{"path": "store", "attention": attention} | values)


@pytest.mark.parametrize(
    ("profile", "codec"), [("exact", "float16"), ("compact", "sqrt_u8"), ("stem", "stem"), (None, "float16")]
)
def test_the_codec_is_that_of_the_profile_unless_given(profile: Any, codec: str, teacher: VLMConfig) -> None:
    found = config({"layers": [0]}, profile=profile)
    assert (found.codec_of("attention"), found.codecs().attention) == (codec, "none")
    [target] = found.further_targets(teacher)
    assert (target.codec, target.source) == ((None, "stem") if codec == "stem" else (codec, "store"))
    assert config({"layers": [0], "codec": "float32"}, profile=profile).codec_of("attention") == "float32"


def test_it_reads_back_as_itself() -> None:
    for heads in ("all", "mean", {"groups": 4}):
        found = config({"layers": "30%-70%", "pairs": "all", "heads": heads}, profile="compact")
        for mode in ("json", "python"):
            assert StoreConfig(**found.model_dump(mode=mode)) == found


def test_the_short_form_makes_no_further_target(teacher: VLMConfig) -> None:
    assert config("float32").further_targets(teacher) == () and config("float32").codecs().attention == "float32"


@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        ({"layers": [1, 3]}, [("attention_layers_tqv", (1, 3), 8)]),
        ({"layers": "50%-100%", "pairs": "vqv", "heads": "mean"}, [("attention_layers_vqv", (2, 3), 1)]),
        (
            {"layers": [0], "pairs": "all", "heads": {"groups": 4}},
            [("attention_layers_tqv", (0,), 4), ("attention_layers_vqv", (0,), 4)],
        ),
    ],
)
def test_its_targets(attention: Any, expected: Any, teacher: VLMConfig) -> None:
    found = config(attention).further_targets(teacher)
    assert [(target.name, target.layers, target.heads) for target in found] == expected


def test_groups_divide_the_heads(teacher: VLMConfig) -> None:
    with pytest.raises(InputError, match="3 groups do not divide the teacher's 8 heads; choose a divisor"):
        config({"layers": [0], "heads": {"groups": 3}}).further_targets(teacher)


@pytest.mark.parametrize(
    ("values", "where", "reason"),
    [
        ({"attention": {}}, ("attention", "layers"), "Field required"),
        ({"attention": {"layers": [0], "pair": "tqv"}}, ("attention", "pair"), "Extra inputs"),
        ({"attention": {"layers": [0], "heads": {"groups": 0}}}, ("attention", "heads", "groups"), "greater than"),
        ({"attention": {"layers": [0], "heads": "median"}}, ("attention", "heads"), "found the text 'median'"),
        ({"attention": {"layers": [0], "codec": "int8_channel"}}, ("attention", "codec"), "expected one of float32"),
        ({"attention": {"layers": [0], "codec": "none"}}, ("attention", "codec"), "expected one of float32"),
        ({"attention": {"layers": [0], "heads": "mean"}, "profile": "stem"}, ("attention",), "leave heads out"),
        ({"attention": {"layers": [0]}, "attention_pairs": "vqv"}, (), "set attention.pairs, now 'tqv'"),
        ({"attention": 16}, ("attention",), "or a section with layers, found the number 16"),
    ],
)
def test_one_problem_each(values: dict[str, Any], where: tuple[str, ...], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as error:
        StoreConfig(**{"path": "store"} | values)
    [problem] = error.value.errors()
    assert problem["loc"] == where


@pytest.mark.parametrize(
    ("values", "pairs", "layers"),
    [
        ({"attention": "float16"}, {"tqv"}, 1),
        ({"attention": "stem", "vision_top": "none"}, set(), 0),
        ({"attention": {"layers": [0, 1], "pairs": "vqv"}}, {"tqv", "vqv"}, 2),
        ({"attention": {"layers": [1, 2], "pairs": "vqv"}}, {"tqv", "vqv"}, 3),
        ({"attention": {"layers": [1, 2]}, "vision_top": "none"}, {"tqv"}, 2),
        ({"attention": {"layers": "0%-100%"}}, {"tqv"}, 4),
        ({"attention": {"layers": [0, 1], "codec": "stem"}}, {"tqv"}, 1),
    ],
)
def test_what_a_pass_computes(values: dict[str, Any], pairs: set[str], layers: int) -> None:
    found = StoreConfig(**{"path": "store"} | values)
    assert found.computed_pairs() == pairs and found.most_watched_layers(4) == layers
