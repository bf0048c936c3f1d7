"""What `alignkd data convert` wrote, for the terminal."""

from collections.abc import Iterator
from pathlib import Path

from alignkd.pipeline.config.yaml_core import dump_yaml
from alignkd.pipeline.data.convert.convert import Converted
from alignkd.pipeline.data.stats.report import counts_line

MAX_REASONS = 10


def next_step_lines(out: Path, images: Path | None, found: Converted) -> list[str]:
    """The lines of a configuration that use the written samples as data.

    Args:
        out: the file that was written.
        images: folder of the images that the samples name; None: it was not given.
    """
    section = {"conversations": str(out), **({} if images is None else {"images": str(images)})}
    lines = ["configuration for `alignkd dump`:", *dump_yaml({"data": section}).splitlines()]
    if images is None and found.images_referenced:
        lines.append("  # images: the folder to which the paths of the images are relative")
    return lines


def convert_lines(found: Converted) -> Iterator[str]:
    """Counts, then reasons with the most frequent first."""
    yield f"{found.written:,} of {found.samples:,} samples written"
    if found.images_written or found.images_there:
        yield f"images: {found.images_written:,} written, {found.images_there:,} times one that was there already"
    if found.images_referenced:
        yield f"images: {found.images_referenced:,} paths kept, no file copied"
    if found.keys_not_read:
        yield f"keys not read: {counts_line(found.keys_not_read)}"
    for option, count in found.filtered.items():
        yield f"dropped by {option}: {count:,}"
    reasons = list(found.unusable.items())
    for reason, count in reasons[:MAX_REASONS]:
        yield f"unusable: {count:,}: {reason}"
    if (rest := sum(count for _, count in reasons[MAX_REASONS:])) > 0:
        yield f"unusable: {rest:,} for other reasons; --list FILE.jsonl lists them all"
