"""Answers of the list page: columns, rows, histograms, and the rows before and after a record."""

from collections.abc import Mapping

from alignkd.pipeline.browse.web.asking import Answer, Asked, json_answer
from alignkd.pipeline.browse.web.excerpts import excerpts
from alignkd.pipeline.browse.web.filters import view_of
from alignkd.pipeline.browse.web.opened import Browser

ROWS = 50
MOST_ROWS = 500
BINS = 40
MOST_BINS = 200


def columns(browser: Browser, asked: Asked) -> Answer:
    """Columns of the index with their ranges, data sets and reasons with their counts."""
    index, chosen = browser.store(asked).index, view_of(asked).filter
    return json_answer(
        {
            "columns": [column.as_json() for column in index.columns()],
            "sources": [source.as_json() for source in index.sources(chosen)],
            "reasons": [reason.as_json() for reason in index.reasons(chosen)],
        }
    )


def page(browser: Browser, asked: Asked) -> Answer:
    """Some rows of the view with the first words of their conversations, and how many rows the view has."""
    index, view = browser.store(asked).index, view_of(asked)
    offset, limit = asked.number("offset", 0), asked.number("limit", ROWS, least=1, most=MOST_ROWS)
    found = index.page(view.filter, sort=view.sort, descending=view.descending, offset=offset, limit=limit)
    texts = excerpts(index.reader, [_position(row) for row in found.rows])
    rows = [{**row, "excerpt": text} for row, text in zip(found.rows, texts, strict=True)]
    return json_answer({**found.as_json(), "rows": rows, "offset": offset})


def histogram(browser: Browser, asked: Asked) -> Answer:
    """Counts of a column's values: of all rows, and of those that the other filters leave."""
    index, bins = browser.store(asked).index, asked.number("bins", BINS, least=1, most=MOST_BINS)
    return json_answer(index.histogram(view_of(asked).filter, asked.text("column"), bins).as_json())


def neighbours(browser: Browser, asked: Asked) -> Answer:
    """Positions of the records before and after a record in the view, null at its ends."""
    index, view, position = browser.store(asked).index, view_of(asked), asked.number("position", 0)
    before, after = index.neighbours(view.filter, sort=view.sort, descending=view.descending, position=position)
    return json_answer({"previous": before, "next": after})


def _position(row: Mapping[str, object]) -> int | None:
    """Position of the record of a row; None for an unusable sample, which has none."""
    position = row["position"]
    return position if isinstance(position, int) else None
