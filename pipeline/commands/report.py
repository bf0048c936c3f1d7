"""`alignkd report`: training runs and their benchmark scores side by side."""

from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import claim_file, claim_folder, force_option
from alignkd.pipeline.console.picture_file import REPORT, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for report.md and pictures: new, empty, or used as --out before. Without it, only print.",
)
@click.option(
    "--smooth",
    type=click.IntRange(min=1),
    help="Number of steps in a mean of losses; by default a tenth of the run, at most 50.",
)
@click.option(
    "--baseline",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run or evaluation whose scores the others are compared with; by default the eval.baseline of the runs.",
)
@force_option
@json_option
@clean_errors
def report(
    runs: tuple[Path, ...], out: Path | None, smooth: int | None, baseline: Path | None, force: bool, as_json: bool
) -> None:
    """Compare training runs, their curves and their benchmark scores.

    Shows final losses, speed and skipped steps, and the scores of `alignkd eval`; with --out also pictures of the
    losses by step and of the scores. RUN is an output folder of `alignkd train`, finished or not, or of `alignkd eval`.

    Example: alignkd report out/supervised out/align-kd --out comparison
    """
    from alignkd.pipeline.report.report import CURVES, PAGE, SCORES, is_report, make_report

    if out is not None:
        claim_folder("--out", out, lambda folder: is_report(folder / PAGE), reads=runs, force=force)
        claim_file("--out", out / PAGE, is_report, reads=(), force=force)
        for name in (CURVES, SCORES):
            claim_file("--out", out / name, is_drawn_by(REPORT), reads=(), force=force)
    made = make_report(runs, smooth=smooth, baseline=baseline)
    written = [] if out is None else made.write(out)
    if as_json:
        print_json(made.to_json())
        return
    click.echo(made.plain())
    if written:
        click.echo(f"wrote {', '.join(map(str, written))}")
