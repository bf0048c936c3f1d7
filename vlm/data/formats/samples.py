"""Entries of any file as samples of the data set."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from alignkd.vlm.data.conversations import sample_of_entry
from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet


def sample_of(index: int, entry: Any, data: DataSet) -> Sample:
    """The sample of entry `index` of a data set."""
    if isinstance(entry, UnusableEntry):
        sample_id = entry.id or f"#{index}"
        return Sample(index=index, id=sample_id, images=(), turns=(), problem=entry.problem, folder=data.images)
    named, contents = _by_name(entry)
    sample = replace(sample_of_entry(index, named), folder=data.images)
    found = tuple(contents.get(image) for image in sample.images)
    return replace(sample, contents=found) if any(content is not None for content in found) else sample


def _by_name(entry: Any) -> tuple[Any, Mapping[str, bytes]]:
    """The entry with the names of its images in the place of images, and the images by name."""
    contents: dict[str, bytes] = {}
    if not isinstance(entry, dict):
        return entry, contents
    named = dict(entry)
    for key in ("image", "images"):
        value = entry.get(key)
        if isinstance(value, list):
            named[key] = [_name(one, number, contents) for number, one in enumerate(value)]
        elif value is not None:
            named[key] = _name(value, 0, contents)
    return named, contents


def _name(value: Any, number: int, contents: dict[str, bytes]) -> Any:
    if isinstance(value, bytes):
        value = {"bytes": value}
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
        return value.get("path", value) if isinstance(value, dict) else value
    name = str(value.get("path") or f"image {number + 1} of the entry")
    contents[name] = value["bytes"]
    return name
