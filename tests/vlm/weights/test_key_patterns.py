"""Grouping parameter names against writing every one of them out."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from alignkd.vlm.weights.key_patterns import group_keys

PARTS = st.sampled_from(["model", "layers", "mlp", "weight", "0", "1", "2", "7", "10", "11", "007", "x3"])
KEYS = st.lists(PARTS, min_size=1, max_size=5).map(".".join)


def expand(pattern: str) -> list[str]:
    """The names a pattern stands for: the twin of `group_keys`."""
    pieces = re.split(r"\{(.*?)\}", pattern)
    choices = [[piece] if number % 2 == 0 else numbers(piece) for number, piece in enumerate(pieces)]
    return ["".join(choice) for choice in itertools.product(*choices)]


def numbers(braces: str) -> list[str]:
    runs = [[int(end) for end in run.split("-")] for run in braces.split(",")]
    return [str(value) for run in runs for value in range(run[0], run[-1] + 1)]


@given(keys=st.lists(KEYS, max_size=30))
def test_patterns_stand_for_exactly_the_keys_each_once(keys: list[str]) -> None:
    patterns = group_keys(keys)
    assert sorted(key for pattern in patterns for key in expand(pattern)) == sorted(set(keys))
    assert patterns == sorted(patterns)


def test_hundreds_of_keys_become_a_line() -> None:
    names = ["self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj"]
    keys = [f"model.layers.{layer}.{name}.weight" for layer in range(32) for name in names]
    assert group_keys([*keys, "lm_head.weight"]) == [
        "lm_head.weight",
        *(f"model.layers.{{0-31}}.{name}.weight" for name in sorted(names)),
    ]
    assert group_keys(["a.3.w", "a.1.w", "a.0.w", "a.7.w", "a.8.w"]) == ["a.{0-1,3,7-8}.w"]
