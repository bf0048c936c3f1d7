"""Answers of the list page: columns, rows, histograms, and the rows before and after a record."""

from alignkd.pipeline.browse.web.asking import Answer, Asked, json_answer
from alignkd.pipeline.browse.web.filters import view_of
from alignkd.pipeline.browse.web.opened import Browser

MOST_ROWS = 500
BINS = 40


def columns(browser: Browser, asked: Asked) -> Answer:
    """Columns of the index with their ranges, data sets and reasons with their counts."""
    index = browser.store(asked).index
    return json_answer({"columns": index.columns(), "sources": index.sources(), "reasons": index.reasons()})


def page(browser: Browser, asked: Asked) -> Answer:
    """Some rows of the view, and how many rows it has."""
    store, view = browser.store(asked), view_of(asked)
    offset, limit = asked.number("offset", 0), asked.number("limit", 50, least=1, most=MOST_ROWS)
    found = store.index.page(view.filter, view.sort, view.descending, offset, limit)
    return json_answer({"rows": found.rows, "matching": found.matching, "offset": offset, **store.index.progress()})


def histogram(browser: Browser, asked: Asked) -> Answer:
    """Counts of a column's values: of all rows, and of those that the other filters leave."""
    index, bins = browser.store(asked).index, asked.number("bins", BINS, least=1, most=200)
    return json_answer(index.histogram(view_of(asked).filter, asked.text("column"), bins))


def neighbours(browser: Browser, asked: Asked) -> Answer:
    """Positions of the records before and after a record in the view, null at its ends."""
    store, view = browser.store(asked), view_of(asked)
    before, after = store.index.neighbours(view.filter, view.sort, view.descending, asked.number("position", 0))
    return json_answer({"previous": before, "next": after})
