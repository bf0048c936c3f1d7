"""Elements of HTML and SVG whose text and attributes are always escaped: names of runs come from strangers."""

import html
import re
from collections.abc import Sequence

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9:-]*")
_VOID = {"br", "img", "meta", "input"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """A value as text; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element with children that are escaped unless they are markup.

    Args:
        attributes: by name, `_` for `-` and a `_` at the end left out; None leaves the attribute out.

    Raises:
        ValueError: a name is none of HTML.
    """
    parts = [_checked(name)]
    for key, value in attributes.items():
        if value is not None:
            parts.append(f'{_checked(key.rstrip("_").replace("_", "-"))}="{html.escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Markup(start if name in _VOID else f"{start}{joined(*children)}</{name}>")


def joined(*children: object) -> Markup:
    """Several children, one after the other."""
    return Markup("".join(map(text, children)))


def table(rows: Sequence[Sequence[object]]) -> Markup:
    """A table whose first row and first column are headings, in a box that scrolls sideways."""
    head, *body = rows
    heads = [element("th", cell, scope="col") for cell in head]
    lines = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in body
    ]
    whole = element("table", element("thead", element("tr", *heads)), element("tbody", *lines))
    return element("div", whole, class_="wide")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an element or attribute")
    return name
