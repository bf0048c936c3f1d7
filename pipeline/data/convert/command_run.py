"""What `alignkd data convert` and `alignkd data filter` have in common: outputs, conversion, printed result."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import click

from alignkd.pipeline.console.outputs import claim_file, claim_folder, never
from alignkd.pipeline.console.printing import print_json
from alignkd.pipeline.data.convert.convert import Converted, ConvertJob, convert
from alignkd.pipeline.data.convert.image_folder import is_image_folder
from alignkd.pipeline.data.convert.report import convert_lines
from alignkd.pipeline.data.options import files_of
from alignkd.pipeline.data.stats.figures import is_listing


def convert_and_print(
    job: ConvertJob,
    *,
    force: bool,
    as_json: bool,
    next_step: Callable[[Converted], Iterable[str]] = lambda found: (),
) -> None:
    """Write the samples of a job and print what was written.

    Args:
        force: replace files that are there.
        as_json: print the counts as JSON, without `next_step`.
        next_step: further lines.

    Raises:
        InputError: an output is there already, or is one of the inputs; see also `convert`.
    """
    _claim_outputs(job, force)
    found = convert(job)
    if as_json:
        print_json(asdict(found))
        return
    for line in convert_lines(found):
        click.echo(line)
    for path in (job.out, job.listing):
        if path is not None:
            click.echo(f"wrote {path}")
    for line in next_step(found):
        click.echo(line)


def _claim_outputs(job: ConvertJob, force: bool) -> None:
    folders = {data.images for data in job.data if data.images is not None}
    reads: list[Path] = [*files_of(tuple(data.path for data in job.data)), *folders]
    claim_file("--out", job.out, never, reads=(*reads, job.listing), force=force)
    if job.listing is not None:
        claim_file("--list", job.listing, is_listing, reads=reads, force=force)
    if job.images_out is not None:
        claim_folder("--images-out", job.images_out, is_image_folder, reads=reads, force=force)
