"""Code blocks of the documents: Python compiles, configurations and commands are accepted, targets of make exist."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from alignkd.pipeline.cli import main
from alignkd.pipeline.config.recipes import load_stages
from alignkd.pipeline.config.run_config import SECTIONS_OF, Command
from alignkd.pipeline.config.yaml_core import dump_yaml, parse_yaml

ROOT = Path(__file__).parents[1]
# the changelog names commands as they were
DOCUMENTS = [
    path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if path.name != "CHANGELOG.md"
]
SECTIONS = {*SECTIONS_OF["run"], "eval", "generate", "stages"}
# sections that a fragment leaves out, and keys that its sections leave out
SECTIONS_LEFT_OUT: dict[str, Any] = {
    "data": [{"conversations": "a.json"}, {"conversations": "b.json"}],
    "store": {"logits": {"kind": "hidden"}},
}
KEYS_LEFT_OUT: dict[str, dict[str, Any]] = {
    "data": {"conversations": "a.json"},
    "teacher": {"checkpoint": "teacher"},
    "student": {"checkpoint": "student"},
    "store": {"path": "store"},
    "train": {"output": "out"},
}


def blocks(*languages: str) -> list[Any]:
    """The code blocks with one of these languages; their ids name document and line."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.finditer(r"^( *)```(\w*)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
            if block[2] in languages:
                line = text[: block.start()].count("\n") + 1
                content = re.sub(f"^{block[1]}", "", block[3], flags=re.MULTILINE)
                found.append(pytest.param(content, id=f"{document.name}:{line}"))
    return found


@pytest.mark.parametrize("text", blocks("python"))
def test_python_compiles(text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_configurations_are_accepted(text: str, tmp_path: Path) -> None:
    """Keys, values, and how sections fit together; what a fragment leaves out has the smallest value."""
    values = parse_yaml(text)
    if not isinstance(values, dict) or not values.keys() <= SECTIONS:
        return
    path = tmp_path / "run.yaml"
    command: Command = "run" if values.keys() & {"student", "train", "stages"} else "dump"
    command = "train" if isinstance(values.get("store"), list) else command
    path.write_text(dump_yaml(completed(values, command)), encoding="utf-8")
    assert load_stages(path, command)


def completed(values: dict[str, Any], command: Command) -> dict[str, Any]:
    """A fragment with the sections and keys that a command needs."""
    filled = dict(values)
    for name in SECTIONS_OF[command]:
        given = values.get(name, SECTIONS_LEFT_OUT.get(name, {}))
        filled[name] = {**KEYS_LEFT_OUT[name], **given} if isinstance(given, dict) else given
    if "train" in filled and not {"epochs", "steps"} & filled["train"].keys():
        filled["train"]["steps"] = 1
    return filled


def command_lines() -> list[Any]:
    """Every line `alignkd ...` of a code block, without comments and what a shell reads of it."""
    found = []
    for block in blocks("", "bash", "console"):
        for line in str(block.values[0]).replace("\\\n", " ").splitlines():
            if match := re.match(r"(?:[A-Z_]+=\S+ )*(?:docker run .* )?alignkd (?=\S)(.*)", line.strip()):
                found.append(pytest.param(match[1], id=f"{block.id}: {match[1][:60]}"))
    return found


@pytest.mark.parametrize("line", command_lines())
def test_commands_are_accepted(line: str) -> None:
    parse(main, shlex.split(re.split(r"[|>&;]", line)[0], comments=True))


def parse(group: click.Command, words: list[str]) -> None:
    """Look the command up, and parse options and arguments as click does; files need not exist.

    Raises:
        click.UsageError: an option, a value or an argument is not accepted.
    """
    context = click.Context(group)
    if isinstance(group, click.Group) and words:
        command = group.get_command(context, words[0])
        assert command or group.invoke_without_command or words[0].startswith("-"), words
        if command is not None:
            return parse(command, words[1:])
    options, _, _ = group.make_parser(context).parse_args(args=list(words))
    for parameter in group.get_params(context):
        value = options.get(str(parameter.name))
        if isinstance(parameter, click.Argument) and parameter.required and not isinstance(group, click.Group):
            assert isinstance(value, str | tuple) and value, f"{parameter.name} is missing: {words}"
        if isinstance(value, str) and not isinstance(parameter.type, click.Path | click.File):
            parameter.type_cast_value(context, value)


def test_what_is_wrong_is_found() -> None:
    for words in (["dump", "run.yaml", "--wroker", "0/2"], ["plan", "run.yaml", "--samples", "many"], ["shards", "ls"]):
        with pytest.raises((click.UsageError, AssertionError)):
            parse(main, words)
    for words in (["nothing"], ["shards", "lss", "STORE"]):
        with pytest.raises(AssertionError):
            parse(main, words)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_targets_of_make_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE))
    named = {*re.findall(r"`make ([a-z-]+)", text), *re.findall(r"^make ([a-z-]+)", code, re.MULTILINE)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert named <= targets, named - targets
