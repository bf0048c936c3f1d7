"""The site has every document, and shows it as a code host does."""

import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pages
import pytest
import yaml
from markdown import Markdown
from markdown_it import MarkdownIt

import alignkd

ROOT = Path(__file__).parents[1]
SITE: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
DOCUMENTS = [*(ROOT / name for name in pages.TOP), *sorted((ROOT / "docs").glob("*.md"))]


def leaves(navigation: Any) -> Iterator[str]:
    if isinstance(navigation, str):
        yield navigation
    for part in navigation if isinstance(navigation, list) else ():
        yield from leaves(next(iter(part.values())) if isinstance(part, dict) else part)


def test_every_document_is_in_the_navigation_once() -> None:
    listed = Counter(leaves(SITE["nav"]))
    expected = {path.name for path in (ROOT / "docs").glob("*.md")} | {*pages.TOP.values(), "reference.md"}
    assert listed.keys() == expected and set(listed.values()) == {1}


def test_the_reference_has_every_public_name() -> None:
    listed = [name for names in pages.NAMES.values() for name in names]
    assert sorted([*listed, "__version__"]) == sorted(alignkd.__all__)
    assert all(f"heading: alignkd.{name}\n" in pages.reference() for name in listed if name != "errors")


def test_links_between_documents_become_links_between_pages() -> None:
    for document, link, expected in (
        ("README.md", "docs/data.md", "data.md"),
        ("README.md", "docs/data.md#folders", "data.md#folders"),
        ("README.md", "ARCHITECTURE.md", "architecture.md"),
        ("README.md", "docs/pictures/results.png", "pictures/results.png"),
        ("docs/data.md", "../README.md#two-commands", "index.md#two-commands"),
        ("docs/data.md", "inputs.md", "inputs.md"),
        ("docs/data.md", "../examples/slurm-dump.sh", "examples/slurm-dump.sh"),
        ("docs/data.md", "#folders", "#folders"),
        ("docs/data.md", "https://example.org/docs/data.md", "https://example.org/docs/data.md"),
        ("docs/data.md", "../setup.py", "../setup.py"),
    ):
        assert pages.with_links_of_pages(f"see [it]({link}).", document) == f"see [it]({expected})."


def test_links_show_titles_in_place_of_names_of_files() -> None:
    for document, text, expected in (
        (
            "README.md",
            "[docs/data.md](docs/data.md#folders), [how](docs/data.md)",
            "[Data](data.md#folders), [how](data.md)",
        ),
        ("docs/data.md", "[files.md](files.md), ![data](a.png)", "[Files, streams, users](files.md), ![data](a.png)"),
        ("docs/data.md", "[CHANGELOG.md](../CHANGELOG.md)", "[Changelog](changelog.md)"),
        ("docs/data.md", "[away.md](https://example.org/away.md)", "[away.md](https://example.org/away.md)"),
    ):
        assert pages.with_links_of_pages(text, document) == expected


class Shape(HTMLParser):
    """The text of a page without white space, and how often each kind of element is in it."""

    ELEMENTS = ("h1", "h2", "h3", "h4", "ul", "ol", "li", "pre", "table", "tr", "td", "th", "code", "strong", "em", "a")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.elements = "", Counter[str]()
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag in self.ELEMENTS:
            self.elements[tag] += 1

    def handle_data(self, data: str) -> None:
        self.text += "".join(data.split())


def as_on_the_site(text: str) -> Markdown:
    """The converter after the text; magiclink makes links of addresses, which CommonMark does not."""
    extensions = [name for name in SITE["markdown_extensions"] if "magiclink" not in name and "highlight" not in name]
    markdown = Markdown(
        extensions=[pages.AsOnCodeHosts(), "toc", *extensions],
        extension_configs={"toc": {"slugify": pages.anchor}, "pymdownx.superfences": {}},
    )
    markdown.html = markdown.convert(text)  # type: ignore[attr-defined]
    return markdown


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_page_has_the_structure_that_code_hosts_show(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    theirs = Shape(MarkdownIt("commonmark").enable("table").render(text))
    ours = Shape(as_on_the_site(text).html)  # type: ignore[attr-defined]
    at = next((n for n, (a, b) in enumerate(zip(ours.text, theirs.text, strict=False)) if a != b), None)
    assert at is None, f"site: {ours.text[at - 40 : at + 40]}, code host: {theirs.text[at - 40 : at + 40]}"
    assert ours.text == theirs.text and ours.elements == theirs.elements


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_anchors_are_those_of_code_hosts(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    made = re.findall(r'id="([^"]+)"', as_on_the_site(text).html)  # type: ignore[attr-defined]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    assert made == [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
