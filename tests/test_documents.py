"""Rules of the documents: where terms are explained, how long a line is, which files they name."""

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from alignkd.pipeline.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
WIDTH = 100
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def prose(text: str) -> Iterator[str]:
    """The lines of a document without code blocks, tables and pictures."""
    in_code = False
    for line in text.splitlines():
        in_code ^= line.lstrip().startswith("```")
        if not in_code and not line.startswith(("    ", "|", "![")):
            yield line


@each_document
def test_every_document_links_the_glossary(document: Path) -> None:
    link = "(glossary.md)" if document.parent.name == "docs" else "(docs/glossary.md)"
    assert document.name == "glossary.md" or link in document.read_text(encoding="utf-8")


@each_document
def test_prose_fits_the_width(document: Path) -> None:
    assert not [line for line in prose(document.read_text(encoding="utf-8")) if len(line) > WIDTH]


@each_document
def test_links_to_files_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_document
def test_links_to_headings_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]*)\)", document.read_text(encoding="utf-8"))
    others = [(document.parent / path if path else document, name) for path, name in links]
    assert not [(path.name, name) for path, name in others if path.suffix == ".md" and name not in anchors(path)]


@each_document
def test_paths_of_the_project_exist(document: Path) -> None:
    code = ("disk", "evaluation", "pipeline", "storage", "student_train", "teacher_dump", "vlm")
    rooms = "|".join(("benchmarks", *code, "tests"))
    named = re.findall(rf"`((?:{rooms})/[\w/.-]+)`", document.read_text(encoding="utf-8"))
    assert not [path for path in named if not (ROOT / path).exists()]


def commands_in(text: str) -> Iterator[list[str]]:
    """The words after `alignkd` of every command in a code block or between backticks."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from (line.split()[1:] for line in block.splitlines() if re.match("alignkd [a-z]", line))
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from (words.split() for words in re.findall(r"`alignkd ([a-z][^`\n]*)`", without_blocks))


@each_document
def test_commands_exist(document: Path) -> None:
    context = click.Context(main)
    for words in commands_in(document.read_text(encoding="utf-8")):
        for name in words[0].split("|"):
            command = main.get_command(context, name)
            assert command is not None, words
            is_group = isinstance(command, click.Group) and not command.invoke_without_command
            if is_group and len(words) > 1 and words[1].isalpha():
                assert command.get_command(context, words[1]) is not None, words
