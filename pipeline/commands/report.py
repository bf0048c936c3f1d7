"""`alignkd report`: training runs and their benchmark scores side by side."""

import logging
from pathlib import Path

import click

from alignkd.pipeline.console.errors import clean_errors
from alignkd.pipeline.console.outputs import REPLACES, claim_file, claim_folder, force_option
from alignkd.pipeline.console.picture_file import REPORT, is_drawn_by
from alignkd.pipeline.console.printing import json_option, print_json

logger = logging.getLogger(__name__)


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
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Page with curves, figures, scores and settings that differ, in one file. " + REPLACES,
)
@click.option(
    "--every",
    type=click.FloatRange(min=1.0, max=86400.0),
    metavar="SECONDS",
    help="With --html: write it again so often, until all runs are finished.",
)
@force_option
@json_option
@clean_errors
def report(
    runs: tuple[Path, ...],
    out: Path | None,
    smooth: int | None,
    baseline: Path | None,
    html: Path | None,
    every: float | None,
    force: bool,
    as_json: bool,
) -> None:
    """Compare training runs, their curves and their benchmark scores.

    Shows final losses, speed and skipped steps, and the scores of `alignkd eval`; with --out also pictures of the
    losses by step and of the scores; with --html one page for a web browser. RUN is an output folder of
    `alignkd train`, finished or not, or of `alignkd eval`. With --every, the page follows runs that are going.

    Example: alignkd report out/supervised out/align-kd --html report.html
    """
    from alignkd.pipeline.report.follow import follow_runs, write_page
    from alignkd.pipeline.report.report import CURVES, PAGE, SCORES, is_html_page, is_report, make_report

    if every is not None and html is None:
        raise click.UsageError("--every needs --html FILE")
    if html is not None:
        claim_file("--html", html, is_html_page, reads=runs, force=force)
    if out is not None:
        claim_folder("--out", out, lambda folder: is_report(folder / PAGE), reads=runs, force=force)
        claim_file("--out", out / PAGE, is_report, reads=(), force=force)
        for name in (CURVES, SCORES):
            claim_file("--out", out / name, is_drawn_by(REPORT), reads=(), force=force)
    made = make_report(runs, smooth=smooth, baseline=baseline)
    written = [] if out is None else made.write(out)
    if html is not None:
        write_page(html, made, every=every)
        written.append(html)
    if as_json:
        print_json(made.to_json())
    else:
        click.echo(made.plain())
        if written:
            click.echo(f"wrote {', '.join(map(str, written))}")
    if html is not None and every is not None and made.is_unfinished:
        logger.info("%s: written again every %g s until all runs are finished; end it with Ctrl-C", html, every)
        follow_runs(html, lambda: make_report(runs, smooth=smooth, baseline=baseline), every=every)
