"""`alignkd report`: training runs side by side."""

from pathlib import Path

import click

from pipeline.console import clean_errors, json_option, print_json


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder for report.md and curves.png; default: only print."
)
@click.option("--smooth", type=click.IntRange(min=1), default=50, show_default=True, help="Steps that a mean covers.")
@json_option
@clean_errors
def report(runs: tuple[Path, ...], out: Path | None, smooth: int, as_json: bool) -> None:
    """Compare training runs: final losses, speed, skipped steps, and their curves.

    RUN is an output folder of `alignkd train`, finished or not.

    Example: alignkd report out/supervised out/align-kd --out comparison
    """
    from pipeline.report import load_runs, report_json
    from pipeline.report_table import markdown_table, plain_table

    loaded = load_runs(runs, smooth=smooth)
    if out is not None:
        from pipeline.report_picture import draw_curves

        out.mkdir(parents=True, exist_ok=True)
        draw_curves(loaded, out / "curves.png", smooth=smooth)
        (out / "report.md").write_text(markdown_table(loaded, picture="curves.png", smooth=smooth), encoding="utf-8")
    if as_json:
        print_json(report_json(loaded))
        return
    click.echo(plain_table(loaded))
    if out is not None:
        click.echo(f"wrote {out / 'report.md'} and {out / 'curves.png'}")
