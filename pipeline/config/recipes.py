"""A recipe: a configuration of several stages, each of which starts from what the one before has trained."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.pipeline.config.output_place import output_problems
from alignkd.pipeline.config.run_config import Command, RunConfig, checked_config, read_yaml, refusal
from alignkd.student_train.output import adapters_file, student_folder
from alignkd.vlm.errors import InputError

STAGES = "stages"
NAME = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One dump and one training; `name` is None in a file without stages."""

    name: str | None
    config: RunConfig


def load_stage(path: Path, command: Command, name: str | None, replaced: Mapping[str, Any] | None = None) -> RunConfig:
    """The configuration of one stage.

    Args:
        replaced: as of `load_stages`.

    Raises:
        InputError: as `load_stages`, or the file has several stages and none was named.
    """
    stages = load_stages(path, command, only=name, replaced=replaced)
    if len(stages) > 1:
        names = ", ".join(str(stage.name) for stage in stages)
        raise InputError(f"{path}: has stages {names}; choose one with --stage, or start all with `alignkd run`")
    return stages[0].config


def load_stages(
    path: Path, command: Command, *, only: str | None = None, replaced: Mapping[str, Any] | None = None
) -> list[Stage]:
    """Every stage of a file in its order; a file without `stages` is one without a name.

    Sections beside `stages` hold for every stage, whose own keys win. From the second stage on, `student.checkpoint`
    and `train.adapters` are what the stage before writes, unless the stage itself gives them.

    Args:
        only: name of the one stage that is wanted; the others are not checked.
        replaced: sections whose keys replace those of every stage.

    Raises:
        InputError: one line with every problem of the file, or no stage of that name.
    """
    values = read_yaml(path)
    if STAGES not in values and only is not None:
        raise InputError(f"{path}: has no stages, asked for {only!r}; leave --stage out")
    named = _handed_over(_by_name(path, values)) if STAGES in values else {None: values}
    if only is not None and only not in named:
        raise InputError(f"{path}: no stage {only!r}; its stages are {', '.join(map(str, named))}")
    stages, problems = [], list[str]()
    for name, sections in named.items():
        if only not in (None, name):
            continue
        config, found = checked_config(_merged(sections, replaced or {}), command)
        problems += [problem if name is None else f"stage {name}: {problem}" for problem in found]
        if config is not None:
            stages.append(Stage(name=name, config=config))
    problems += output_problems({stage.name: stage.config for stage in stages})
    if problems:
        raise refusal(path, problems)
    return stages


def _by_name(path: Path, values: Mapping[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Name -> the stage's own sections, and those with the shared ones below."""
    shared, stages = {key: value for key, value in values.items() if key != STAGES}, values[STAGES]
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise InputError(
            f"{path}: stages is {str(stages)[:80]!r}, expected a list of stages, each with name and sections"
        )
    named: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for number, stage in enumerate(stages, start=1):
        own = {key: value for key, value in stage.items() if key != "name"}
        name = stage.get("name")
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in named:
            raise InputError(
                f"{path}: stage {number} has name {name!r}; give each stage a name of its own of letters, digits, "
                "'_', '-' and '.'"
            )
        named[name] = own, _merged(shared, own)
    return named


def _handed_over(
    named: Mapping[str, tuple[dict[str, Any], dict[str, Any]]],
) -> dict[str | None, dict[str, Any]]:
    """The sections of each stage, with the student and the adapters that the one before writes."""
    resolved: dict[str | None, dict[str, Any]] = {}
    output: Path | None = None
    for name, (own, sections) in named.items():
        given: dict[str, dict[str, Any]] = {"student": {}, "train": {}}
        if output is not None:
            given = {
                "student": {"checkpoint": str(student_folder(output))},
                "train": {"adapters": str(adapters_file(output))},
            }
        resolved[name] = _merged(_merged(sections, given), {key: own[key] for key in given.keys() & own.keys()})
        output = _output(sections)
    return resolved


def _output(sections: Mapping[str, Any]) -> Path | None:
    train = sections.get("train")
    found = train.get("output") if isinstance(train, dict) else None
    return Path(found) if isinstance(found, str) else None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, mapping by mapping; an empty section does not hide the one below."""
    merged = dict(below)
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        elif key not in merged or not _is_empty_section(value, merged[key]):
            merged[key] = value
    return merged


def _is_empty_section(value: Any, below: Any) -> bool:
    """Whether a value is `{}`, or a section whose keys are all commented out."""
    return value == {} or (value is None and isinstance(below, dict))
