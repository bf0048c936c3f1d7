"""Filter, order and page of the list, as the query of a URL.

q=TEXT  id=TEXT  source=NAME (several)  show=usable|unusable  reason=REASON (several)
range.COLUMN=LOW..HIGH (either may be missing)
sort=COLUMN  desc=1  offset=N  limit=N
"""

import math
from dataclasses import dataclass

from alignkd.pipeline.browse.index.filters import Filter
from alignkd.pipeline.browse.web.asking import Asked, BadRequestError

RANGE = "range."
SHOWN = {"": None, "all": None, "usable": False, "unusable": True}
DEFAULT_SORT = "index"
Range = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class View:
    """What the list shows: which rows, in which order."""

    filter: Filter
    sort: str
    descending: bool


def view_of(asked: Asked) -> View:
    """The view that a query describes.

    Raises:
        BadRequestError: a value that is none of those above.
    """
    shown = asked.text("show")
    if shown not in SHOWN:
        raise BadRequestError(f"show is {shown[:40]!r}, expected usable, unusable or all")
    found = Filter(
        text=asked.text("q"),
        id=asked.text("id"),
        sources=tuple(asked.query.get("source", ())),
        unusable=SHOWN[shown],
        reasons=tuple(asked.query.get("reason", ())),
        ranges={
            name.removeprefix(RANGE): _range(name, asked.text(name)) for name in asked.query if name.startswith(RANGE)
        },
    )
    return View(filter=found, sort=asked.text("sort", DEFAULT_SORT), descending=asked.text("desc") == "1")


def _range(name: str, text: str) -> Range:
    low, dots, high = text.partition("..")
    if not dots:
        raise BadRequestError(f"{name} is {text[:40]!r}, expected LOW..HIGH")
    return _bound(name, low), _bound(name, high)


def _bound(name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadRequestError(f"{name} has the bound {text[:40]!r}, expected a number")
    return found
