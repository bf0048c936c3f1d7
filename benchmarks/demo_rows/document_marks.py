"""Puts the tables of a benchmark into documents, between two lines that mark their place."""

from pathlib import Path

from alignkd.disk.whole_file import write_whole
from alignkd.vlm.errors import InputError


def write_between_marks(path: Path, name: str, text: str) -> None:
    """Replace what a document has between the marks `name`.

    Raises:
        InputError: the document does not have both marks, in this order.
    """
    write_whole(path, between_marks(path.read_text(encoding="utf-8"), name, text, path))


def between_marks(document: str, name: str, text: str, path: Path) -> str:
    """The document with `text` between the marks; `path` is its name in the error."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, begin_found, rest = document.partition(begin)
    _, end_found, after = rest.partition(end)
    if not begin_found or not end_found:
        raise InputError(f"{path}: has no lines {begin} and {end}; put them where the tables belong")
    return f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}"
