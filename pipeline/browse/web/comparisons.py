"""Answers of the page that compares two stores, or a teacher with a student."""

from typing import Any

from alignkd.pipeline.browse.records.comparison import compare as compare_stores
from alignkd.pipeline.browse.records.comparison import compare_student
from alignkd.pipeline.browse.web.asking import Answer, Asked, BadRequestError, NotThereError, json_answer
from alignkd.pipeline.browse.web.opened import Browser

OTHER, STUDENT = "other", "student"


def compare(browser: Browser, asked: Asked) -> Answer:
    """The record with a key on two sides: its page, and the query of requests for its attention, for each of them.

    `with=other` compares with the second store, `with=student` with the student; by default with the store, if there is
    one.
    """
    wanted = asked.text("with", OTHER if len(browser.stores) > 1 else STUDENT)
    if wanted not in (OTHER, STUDENT):
        raise BadRequestError(f"with is {wanted[:40]!r}, expected {OTHER} or {STUDENT}")
    if wanted == OTHER and len(browser.stores) < 2:
        raise NotThereError("one store is open; give a second one to `alignkd shards browse`")
    first, key = browser.stores[0], asked.path["key"]
    if wanted == OTHER:
        second = browser.stores[1]
        found = compare_stores(first.views, second.views, key).as_json()
        sides = [_side(first.name, "store=0"), _side(second.name, "store=1")]
    else:
        found = compare_student(first.views, first.position(-1, key)).as_json()
        sides = [_side("teacher", "store=0"), _side("student", "student=1")]
    pages = found.pop("pages")
    choices = [name for name, there in ((OTHER, len(browser.stores) > 1), (STUDENT, browser.has_student)) if there]
    shown = [side | {"page": page} for side, page in zip(sides, pages, strict=True)]
    return json_answer({**found, "sides": shown, "with": wanted, "choices": choices})


def _side(name: str, query: str) -> dict[str, Any]:
    return {"name": name, "query": query}
