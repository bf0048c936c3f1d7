"""Answers of the page that compares two stores, or a teacher with a student."""

from alignkd.pipeline.browse.web.asking import Answer, Asked, NotThereError, json_answer
from alignkd.pipeline.browse.web.opened import Browser


def compare(browser: Browser, asked: Asked) -> Answer:
    """The record with a key in both stores, and their differences."""
    from alignkd.pipeline.browse.records import compare as compare_records

    if len(browser.stores) < 2:
        raise NotThereError("one store is open; give a second one to `alignkd shards browse`")
    first, second = browser.stores
    return json_answer(compare_records(first.reader, second.reader, asked.path["key"]))
