"""What `alignkd data convert` wrote, for the terminal."""

from collections.abc import Iterator

from alignkd.pipeline.data.convert.convert import Converted
from alignkd.pipeline.data.stats.report import counts_line

MAX_REASONS = 10


def convert_lines(found: Converted) -> Iterator[str]:
    """Counts, then reasons with the most frequent first."""
    yield f"{found.written:,} of {found.samples:,} samples written"
    if found.images_written or found.images_there:
        yield f"images: {found.images_written:,} written, {found.images_there:,} times one that was there already"
    if found.images_referenced:
        yield f"images: {found.images_referenced:,} named where they are"
    if found.keys_not_read:
        yield f"keys not read: {counts_line(found.keys_not_read)}"
    for option, count in found.filtered.items():
        yield f"dropped by {option}: {count:,}"
    reasons = list(found.unusable.items())
    for reason, count in reasons[:MAX_REASONS]:
        yield f"unusable: {count:,}: {reason}"
    if (rest := sum(count for _, count in reasons[MAX_REASONS:])) > 0:
        yield f"unusable: {rest:,} for other reasons; --list FILE.jsonl lists them all"
