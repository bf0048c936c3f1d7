"""`alignkd report`: training runs side by side."""

from pathlib import Path

import click

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import claim_file, claim_folder, force_option
from alignkd.pipeline.console.picture_file import REPORT, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for report.md and curves.png: new, empty, or used as --out before. Without it, only print.",
)
@click.option(
    "--smooth",
    type=click.IntRange(min=1),
    help="Number of steps in a mean of losses; by default a tenth of the run, at most 50.",
)
@force_option
@json_option
@clean_errors
def report(runs: tuple[Path, ...], out: Path | None, smooth: int | None, force: bool, as_json: bool) -> None:
    """Compare training runs and their curves.

    Shows final losses, speed and skipped steps; with --out also a picture of the losses by step. RUN is an output
    folder of `alignkd train`, finished or not.

    Example: alignkd report out/supervised out/align-kd --out comparison
    """
    from alignkd.pipeline.report.load import load_runs, report_json
    from alignkd.pipeline.report.table import is_report, markdown_table, plain_table

    if out is not None:
        page, picture = out / "report.md", out / "curves.png"
        claim_folder("--out", out, lambda folder: is_report(folder / "report.md"), reads=runs, force=force)
        claim_file("--out", page, is_report, reads=(), force=force)
        claim_file("--out", picture, is_drawn_by(REPORT), reads=(), force=force)
    loaded = load_runs(runs, smooth=smooth)
    if out is not None:
        from alignkd.pipeline.report.picture import draw_curves

        draw_curves(loaded, picture)
        write_whole(page, markdown_table(loaded, picture=picture.name))
    if as_json:
        print_json(report_json(loaded))
        return
    click.echo(plain_table(loaded))
    if out is not None:
        click.echo(f"wrote {page} and {picture}")
