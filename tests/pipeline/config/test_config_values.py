"""Every key of a configuration, found by walking over the models, refuses what it cannot use in plain words."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from alignkd.pipeline.config.problems import section_model
from alignkd.pipeline.config.run_config import RunConfig, checked_config, load_run_config
from alignkd.vlm.errors import InputError
from alignkd.vlm.settings import MAX_COUNT

SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"conversations": "data.json"},
    "teacher": {"checkpoint": "teacher"},
    "student": {"checkpoint": "student"},
    "store": {"path": "store"},
    "train": {"output": "out", "steps": 1},
}
WRONG: list[Any] = [None, True, 0, -1, 3, 3.0, 2.5, math.inf, -math.inf, math.nan, 2**31, 2**64, 10**399, 1e300]
WRONG += [
    "",
    "text",
    "3",
    "1_000",
    "yes",
    "off",
    "~nobody-of-this-name/x",
    "$NOT_SET_ANYWHERE",
    [],
    ["a"],
    {},
    {"a": 1},
]
# What pydantic's own messages are made of, and what Python's are.
NOT_PLAIN = re.compile(
    r"lax|union|function-|pydantic|[Ii]nput should|instance|valid |dict|NoneType|\bstr\b|\bint\b|float\b(?!\d)"
)


def keys(model: type[BaseModel], where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a model and of the sections below it."""
    for name in model.model_fields:
        yield (*where, name)
        if (section := section_model(model, name)) is not None:
            yield from keys(section, (*where, name))


def problems_with(where: tuple[str, ...], value: Any) -> list[str]:
    sections: dict[str, Any] = {name: dict(values) for name, values in SECTIONS.items()}
    inner = sections
    for part in where[:-1]:
        inner = inner.setdefault(part, {})
    inner[where[-1]] = value
    return checked_config(sections, "run")[1]


@pytest.mark.parametrize("where", list(keys(RunConfig)), ids=".".join)
def test_a_wrong_value_is_refused_in_plain_words(where: tuple[str, ...]) -> None:
    accepted = []
    for value in WRONG:
        problems = problems_with(where, value)
        if not problems:
            accepted.append(value)
        for problem in problems:
            named = problem.replace("vision_config", "").replace("float16", "").replace("float32", "")
            assert "\n" not in problem and len(problem) < 400 and NOT_PLAIN.search(named) is None, problem
        own = [problem for problem in problems if problem.startswith(f"{'.'.join(where)}: ")]
        assert all(re.search("found|empty|missing|unknown key|environment variable|home folder", one) for one in own), (
            own
        )
    lists = where in (("student", "lora", "targets"), ("train", "report_to"))  # which may be a list of names
    assert not any((isinstance(value, list) and not lists) or value in (math.inf, 10**399) for value in accepted), (
        accepted
    )
    kinds = {type(value) for value in accepted}
    assert not kinds >= {bool, int} and not kinds >= {bool, float} and not kinds >= {str, int}, accepted
    assert float not in kinds or 2.5 in accepted, accepted


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("store.path", 2024, "store.path: expected a path, found the number 2024; put it in quotes"),
        ("store.path", None, "store.path: expected a path, found nothing"),
        ("store.path", "", "store.path: expected a path, found an empty text"),
        ("store.path", ["a"], "store.path: expected a path, found a list"),
        ("data.images", "C:\new", "data.images: has the character '\\n'"),
        ("student.checkpoint", 7, "student.checkpoint: expected a path, found the number 7; put it in quotes"),
        ("train.steps", "yes", "train.steps: expected a whole number, found the text 'yes'"),
        ("train.steps", True, "train.steps: expected a whole number, found true"),
        ("train.steps", "3", "train.steps: expected a whole number, found the text '3'; write 3 without quotes"),
        ("train.steps", "1_000", "found the text '1_000'; write 1000 without underscores"),
        ("train.steps", 1e4, "train.steps: expected a whole number, found the number 10000.0; write 10000"),
        ("train.steps", "1:30", "train.steps: expected a whole number, found the text '1:30'"),
        ("train.steps", 0, "train.steps: expected at least 1, found 0"),
        ("train.steps", 10**399, f"train.steps: expected at most {MAX_COUNT}, found 1000"),
        ("train.micro_batch", 10**9, "train.micro_batch: expected at most 1048576, found 1000000000"),
        ("train.global_batch", 10**9, "train.global_batch: expected at most 1048576, found 1000000000"),
        ("train.learning_rate", math.inf, "train.learning_rate: expected a finite number, found inf"),
        ("train.epochs", math.inf, "train.epochs: expected a finite number, found inf"),
        ("train.losses.attention", math.inf, "train.losses.attention: expected a finite number, found inf"),
        ("train.learning_rate", 1e300, "train.learning_rate: expected at most 1e+30, found 1e+300"),
        ("train.learning_rate", "1e-5 ", "train.learning_rate: expected a number, found the text '1e-5 '; write 1e-5"),
        ("train.float32_gradients", "yes", "expected true or false, found the text 'yes'"),
        ("train.offload_optimizer", True, "train: offload_optimizer: true is now optimizer: adamw_offload"),
        ("train.offload_optimizer", False, "train: offload_optimizer: false is now optimizer: adamw"),
        ("train.optimizer", "sgd", "expected 'adamw', 'adamw_8bit' or 'adamw_offload', found 'sgd'"),
        ("train.losses", None, None),
        ("train.targets", None, None),
        ("store.logits", None, None),
        ("train.losses", 0, "train.losses: expected a section with keys, found the number 0"),
        ("train.preset", ["paper"], "train.preset: expected 'paper', 'supervised'"),
        ("teacher.sanity", False, "teacher.sanity: expected 'stop', 'warn' or 'off', found false"),
        ("teacher.device", 0, "teacher.device: expected a text, found the number 0; put it in quotes"),
        ("store.profile", [1], "store.profile: expected 'exact', 'compact' or 'stem', found a list"),
        ("data", None, "data: section is empty, alignkd run needs it"),
    ],
)
def test_messages(where: str, value: Any, said: str | None) -> None:
    problems = problems_with(tuple(where.split(".")), value)
    assert said in "; ".join(problems) if said else not problems, problems


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


COMPLETE = """
data: {conversations: data.json}
teacher: {checkpoint: org/teacher, sanity: off}
student: {checkpoint: org/student}
store: {path: "${STORES}/$$1"}
train: {output: ~/out, steps: 010, learning_rate: 4e-5, adapters: $STORES/a.safetensors, stem: ~/stem}
"""


def test_a_file_with_yaml_12_and_paths_to_expand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/somebody")
    monkeypatch.setenv("STORES", "/scratch")
    config = load_run_config(written(tmp_path, COMPLETE), "run")
    assert config.teacher is not None and config.train is not None
    assert config.teacher.sanity == "off" and config.teacher.checkpoint == "org/teacher"
    assert config.train.steps == 10 and config.train.learning_rate == 4e-5
    assert config.store.path == Path("/scratch/$1") and config.train.output == Path("/home/of/somebody/out")
    assert (config.train.adapters, config.train.stem) == (
        Path("/scratch/a.safetensors"),
        Path("/home/of/somebody/stem"),
    )


def test_every_problem_of_a_file_stands_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORES", raising=False)
    with pytest.raises(InputError) as error:
        load_run_config(written(tmp_path, COMPLETE), "run")
    message = str(error.value)
    assert "2 problems" in message and "\n" not in message
    assert "store.path: the environment variable STORES in '${STORES}/$$1' is not set" in message
    assert "train.adapters: the environment variable STORES" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"train: {steps: 1}\ntrain: {steps: 2}", "run.yaml: train is given twice"),
        (b"\xff\xfea\x00", "run.yaml: not UTF-8 (invalid start byte at byte 0); save it as UTF-8"),
        (b"", "run.yaml: contains nothing, expected sections data"),
        (b"# all of it\n", "run.yaml: contains nothing"),
        (b"3", "run.yaml: contains the number 3"),
        (b" " * (2 << 20), "run.yaml: more than 1 MiB, too large for a configuration; check the path"),
    ],
)
def test_files_that_are_no_configuration(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_run_config(path, "run")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputError, match=rf"none\.yaml \(in full {re.escape(str(tmp_path))}/none\.yaml\): cannot be read"
    ):
        load_run_config(Path("none.yaml"), "run")
    with pytest.raises(InputError, match="Is a directory"):
        load_run_config(tmp_path, "run")
