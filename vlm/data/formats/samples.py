"""Entries of any file as samples of the data set."""

from typing import Any

from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.formats.entry_file import UnusableEntry
from alignkd.vlm.data.sample import Sample


def sample_of(index: int, entry: Any, reading: EntryReading) -> Sample:
    """The sample of entry `index` of a data set."""
    if not isinstance(entry, UnusableEntry):
        return sample_of_entry(index, entry, reading)
    sample_id = entry.id or f"#{index}"
    return Sample(index=index, id=sample_id, images=(), turns=(), problem=entry.problem, folder=reading.images)
