"""Answers of the record page: the record, the attention of a token, its images, a PNG of what is seen."""

from typing import Any

from alignkd.pipeline.browse.web.asking import Answer, Asked, BadRequestError, json_answer
from alignkd.pipeline.browse.web.opened import Browser, OpenedStore

MEAN = "mean"


def record(browser: Browser, asked: Asked) -> Answer:
    """One record: identity, conversation, tokens, predictions, images, layers and heads that can be shown."""
    store, position = _record(browser, asked)
    return json_answer(store.views.record_page(position).as_json())


def attention(browser: Browser, asked: Asked) -> Answer:
    """The attention of one token, or of the mean over the queries, on the grid of each image.

    `student=1` asks for the student's.
    """
    store, position = _record(browser, asked)
    is_student = asked.text("student") == "1"
    found = store.views.attention(position, head=head_of(asked), student=is_student, **_choice(asked))
    return json_answer(found.as_json())


def heads(browser: Browser, asked: Asked) -> Answer:
    """The maps of every head of a layer."""
    store, position = _record(browser, asked)
    found = store.views.heads(position, **_choice(asked))
    return json_answer({"heads": [one.as_json()["maps"] for one in found]})


def image(browser: Browser, asked: Asked) -> Answer:
    """An image of the record as PNG."""
    store, position = _record(browser, asked)
    return Answer(store.views.image_png(position, asked.path["number"]), "image/png")


def view(browser: Browser, asked: Asked) -> Answer:
    """The picture of `alignkd shards show --png` with the choice of the page."""
    store, position = _record(browser, asked)
    return Answer(store.views.view_png(position, head=head_of(asked), **_choice(asked)), "image/png")


def head_of(asked: Asked) -> int | None:
    """The head of a request; None for the mean.

    Raises:
        BadRequestError: neither a number nor `mean`.
    """
    head = asked.text("head", MEAN)
    if head == MEAN:
        return None
    if not (head.isascii() and head.isdigit() and len(head) <= 6):
        raise BadRequestError(f"head is {head[:40]!r}, expected a number or mean")
    return int(head)


def _record(browser: Browser, asked: Asked) -> tuple[OpenedStore, int]:
    store = browser.store(asked)
    return store, store.position(asked.path["position"], asked.text("key"))


def _choice(asked: Asked) -> dict[str, Any]:
    """Layer and query of a request; None for the first layer, and for the mean over the queries."""
    return {"layer": asked.number_or_none("layer"), "query": asked.number_or_none("query")}
