"""Configuration files are read as YAML 1.2 with its core schema; unsupported YAML is refused with its line."""

import math
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alignkd.pipeline.config.yaml_core import MAX_VALUES, YamlTextError, dump_yaml, parse_yaml

# YAML 1.2.2, sections 10.2 and 10.3; beside most of the texts stands what YAML 1.1 makes of it.
CORE: dict[str, Any] = {
    "yes": "yes",  # true
    "no": "no",  # false
    "on": "on",  # true
    "off": "off",  # false
    "y": "y",
    "true": True,
    "False": False,
    "TRUE": True,
    "tRue": "tRue",
    "010": 10,  # 8
    "0o10": 8,  # text
    "0o8": "0o8",
    "0x1F": 31,
    "-0x1F": "-0x1F",  # -31
    "0b11": "0b11",  # 3
    "1:30": "1:30",  # 90
    "190:20:30": "190:20:30",
    "1_000": "1_000",  # 1000
    "+1": 1,
    "-0": 0,
    "4e-5": 4e-5,  # text
    "1e3": 1000.0,  # text
    "1.": 1.0,
    ".5": 0.5,
    "-.5": -0.5,
    "+12.5E+3": 12500.0,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "inf": "inf",
    ".": ".",
    "e5": "e5",
    "1.2.3": "1.2.3",
    "2024-01-01": "2024-01-01",  # a date
    "2001-12-14t21:59:43.10-05:00": "2001-12-14t21:59:43.10-05:00",
    "null": None,
    "Null": None,
    "~": None,
    "": None,
    "nULL": "nULL",
    "=": "=",  # refused
    "'010'": "010",
    '"true"': "true",
    "!!str 010": "010",
    "!!int '010'": 10,
    "!!float 3": 3.0,
    "~/store": "~/store",
    "${SCRATCH}/store": "${SCRATCH}/store",
    "mtgv/MobileVLM_V2-7B": "mtgv/MobileVLM_V2-7B",
}


@pytest.mark.parametrize("text", CORE)
@pytest.mark.parametrize("frame", ["key: {}", "key:\n  - {}", "[{}, {}]"])
def test_a_scalar_is_what_the_core_schema_makes_of_it(text: str, frame: str) -> None:
    if frame.startswith("[") and (text == "" or "{" in text):
        return  # not YAML; refused below
    found = parse_yaml(frame.replace("{}", text))
    found = found["key"] if isinstance(found, dict) else found
    value = found[0] if isinstance(found, list) else found
    assert type(value) is type(CORE[text]) and value == CORE[text]


def test_not_a_number() -> None:
    assert all(math.isnan(value) for value in parse_yaml("[.nan, .NaN, .NAN]"))


LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    + [f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]" for below, name in zip("abcdefgh", "bcdefghi", strict=True)]
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("steps: 1\nrate: 2\nsteps: 3\n", ["steps is given twice: 1 on line 1, 3 on line 3"]),
        ("train: {steps: 1}\ntrain: {steps: 2}", ["train is given twice: a mapping on line 1, a mapping on line 2"]),
        ("train: {losses: {logit: 1, logit: 0.5}}", ["train.losses.logit is given twice: 1 on line 1, 0.5 on line 1"]),
        ("stages:\n- name: a\n  name: b", ["stages[0].name is given twice: 'a' on line 2, 'b' on line 3"]),
        ("layers: {1: 0, '1': 2}", ["layers.1 is given twice: 0 on line 1, 2 on line 1"]),
        ("a: 1\nb: 1\n'a': 2\nb: 2", ["a is given twice: 1 on line 1, 2 on line 3", "b is given twice"]),
        ("a: &x {p: 1}\nb: {<<: *x}", ["line 2: '<<' (merge)", "write the keys out"]),
        (
            "1.5: a\ntrue: b",
            ["line 1: a key must be a name, found the number 1.5", "line 2: a key must be a name, found true"],
        ),
        ("? [1, 2]\n: 3", ["line 1: a key must be a name, found a list"]),
        ("path: {{ folder }}", ["line 1: a key must be a name, found a mapping", "quotes"]),
        ("a: 1\n---\nb: 2", ["a second document starts on line 2"]),
        (
            "a: !!python/object/apply:os.system [true]",
            ["line 1: the tag !!python/object/apply:os.system is not supported"],
        ),
        ("a: !own 1", ["line 1: the tag !own is not supported"]),
        ("a: !!set {x}", ["the tag !!set is not supported"]),
        ("a: !!int x", ["line 1: 'x' does not fit its tag !!int"]),
        ("a:\n\tb: 1", ["line 2, column 1", "use blanks instead of tabs"]),
        ("store: {path: ${SCRATCH}/store}", ["line 1, column 16", 'put text with braces in quotes: "${NAME}/folder"']),
        ("a: [${SCRATCH}/store]", ["put text with braces in quotes"]),
        ("a: `x", ["line 1, column 4", "in quotes"]),
        ("a: b: c", ["line 1, column 5", "indentation"]),
        ('a: "C:\\Users"', ["write a backslash twice"]),
        ("a: &x 1\nb: &x 2", ["found duplicate anchor 'x'", "line 2"]),
        ("a: *x", ["undefined alias 'x'"]),
        ("a: &x [*x]", ["line 1", "contains itself"]),
        (LAUGHS, [f"more than {MAX_VALUES:,} values"]),
        ("[" * 1500, ["nested too deeply"]),
        (f"steps: {'9' * 5000}", ["line 1: a number of 5000 characters"]),
        ("a: 1\nb: \x01", ["line 2: YAML has no character U+0001"]),
    ],
)
def test_unsupported_yaml_is_refused_with_its_line(text: str, parts: list[str]) -> None:
    with pytest.raises(YamlTextError) as error:
        parse_yaml(text)
    message = str(error.value)
    assert "\n" not in message and len(message) < 300 and all(part in message for part in parts), message


def test_aliases_are_read() -> None:
    assert parse_yaml("a: &x {p: [1]}\nb: *x") == {"a": {"p": [1]}, "b": {"p": [1]}}
    assert parse_yaml("a: '<<'\n'<<': b") == {"a": "<<", "<<": "b"}


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.sampled_from(sorted(CORE))
    | st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufeff\ufffe\uffff"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("aen01.:~_", max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_what_is_written_is_read_again_by_readers_of_both_versions(value: Any) -> None:
    text = dump_yaml(value)
    assert parse_yaml(text) == value and yaml.safe_load(text) == value
