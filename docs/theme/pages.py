"""What MkDocs needs to build its site from files that are written for a code host.

* The documents at the top of the project become pages: README.md is the first one.
* Links between documents stay as they are in the files (`../ARCHITECTURE.md`, `docs/data.md`); here they become
  links between pages, with the titles of the pages in place of names of files.
* Anchors and lists follow the rules of code hosts: one hyphen for each space, and an indent of two spaces.
* The page of public Python names is made from `alignkd.__all__`.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import alignkd

ROOT = Path(__file__).parents[2]
# documents at the top of the project -> pages
TOP = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# a folder at the top whose files documents link; the site has them too
EXAMPLES = "examples"
_CODE = re.compile(r"`[^`]+`")
_LINK = re.compile(r"(\[(?:docs/)?[\w-]+\.md)?\]\(([^)#: ]+)(#[^) ]*)?\)")
# public names by what they are for; a test compares them with `alignkd.__all__`
NAMES = {
    "Stores": ("open_store", "StoreReader", "Record", "Manifest", "DenseLogprobs", "SparseLogprobs"),
    "A training loop of your own": ("TargetDataset",),
    "Dumps": ("dump_job", "dump", "DumpJob", "DumpResult"),
    "Training": ("train_job", "train", "TrainJob", "TrainResult"),
    "Tools": ("verify", "convert"),
    "Other readers": ("float_view", "webdataset_decoder"),
    "Errors": ("AlignkdError", "errors"),
}


def on_config(config: MkDocsConfig) -> None:
    """Anchors and lists as code hosts have them."""
    config.mdx_configs["toc"] = {"slugify": anchor, "permalink": True}
    config.markdown_extensions.insert(0, AsOnCodeHosts())  # type: ignore[arg-type]  # Markdown takes instances too


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for example in sorted((ROOT / EXAMPLES).iterdir()):
        files.append(File.generated(config, f"{EXAMPLES}/{example.name}", abs_src_path=str(example)))
    files.append(File.generated(config, "reference.md", content=reference()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links between documents as links between pages."""
    origins = {made: source for source, made in TOP.items()}
    return with_links_of_pages(markdown, origins.get(page.file.src_uri, f"docs/{page.file.src_uri}"))


def with_links_of_pages(markdown: str, document: str) -> str:
    """Replace links to files of the project; a link that shows the name of a file shows the title of the page.

    Args:
        document: path of the document from the top of the project.
    """

    def replaced(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(document), link[2]))
        has_place = target.startswith(("docs/", f"{EXAMPLES}/"))
        page = TOP.get(target, target.removeprefix("docs/") if has_place else None)
        text = f"[{title(target)}" if page is not None and link[1] else link[1] or ""
        return link[0] if page is None else f"{text}]({page}{link[3] or ''})"

    return _LINK.sub(replaced, markdown)


def title(document: str) -> str:
    """The heading of a document, which names its page on the site.

    Args:
        document: its path from the top of the project.
    """
    first = next(line for line in (ROOT / document).read_text(encoding="utf-8").splitlines() if line.startswith("# "))
    return first.removeprefix("# ")


def anchor(heading: str, separator: str = "-") -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", separator)


def reference() -> str:
    """The page of public names, for mkdocstrings."""
    lines = [
        "# Python names",
        "",
        f"All names of `import alignkd`, version {alignkd.__version__}. Guide with examples:",
    ]
    lines += ["[alignkd from Python](python.md).", ""]
    for title, names in NAMES.items():
        lines += [f"## {title}", ""]
        for name in names:
            if name == "errors":
                members = [f"`{error}`" for error in alignkd.errors.__all__]
                lines += [f"`alignkd.errors` has {', '.join(members[:-1])} and {members[-1]}.", ""]
            else:
                module, _, original = alignkd._HOMES[name].partition(":")
                lines += [f"::: {module}.{original or name}", "    options:", f"      heading: alignkd.{name}"]
                lines += [f"      toc_label: {name}", ""]
    return "\n".join(lines)


class AsOnCodeHosts(Extension):
    """What belongs to an item of a list is indented by the width of its mark, not by four spaces; pipes in tables."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.tab_length = 2
        # the patterns of lists contain the width; extensions that come before this one would be lost
        md.build_parser()
        # after the code blocks have been taken out
        md.preprocessors.register(PipesInCells(md), "pipes_in_cells", 20)


class PipesInCells(Preprocessor):
    r"""`\|` stands for a pipe in the code of a cell, too."""

    def run(self, lines: list[str]) -> list[str]:
        return [_CODE.sub(_plain_pipes, line) if line.startswith("|") else line for line in lines]


def _plain_pipes(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")
