"""A report: training runs and benchmark scores, as text, page, JSON and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.report.load import Run, load_runs, report_json
from alignkd.pipeline.report.scores.comparison import Comparison, compare, row_json
from alignkd.pipeline.report.scores.load import is_evaluation, load_evaluations, with_baseline
from alignkd.pipeline.report.scores.table import markdown_scores, plain_scores
from alignkd.pipeline.report.table import HEADING, markdown_table, plain_table

PAGE, CURVES, SCORES = "report.md", "curves.png", "scores.png"
HEADING_OF_SCORES = "# Evaluations"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What is compared.

    Attributes:
        runs: the training runs; none if only evaluations were given.
        comparison: the benchmark scores; None if nothing was evaluated.
    """

    runs: tuple[Run, ...]
    comparison: Comparison | None

    def plain(self) -> str:
        """The tables for a terminal."""
        parts = [plain_table(self.runs)] if self.runs else []
        if self.comparison is not None:
            parts.append("\n".join(plain_scores(self.comparison)))
        return "\n\n".join(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """An object per run with its evaluation, or None, then one per other evaluation."""
        rows = [] if self.comparison is None else list(self.comparison.rows)
        listed = []
        for values in report_json(self.runs):
            own = next((row for row in rows if row.evaluation.run == values["path"]), None)
            rows = [row for row in rows if row is not own]
            listed.append({**values, "evaluation": own and self._row_json(own)})
        return [*listed, *({"name": row.evaluation.name, "evaluation": self._row_json(row)} for row in rows)]

    def write(self, folder: Path) -> list[Path]:
        """Write page and pictures; return them."""
        # here, because matplotlib takes a second to import
        from alignkd.pipeline.report.picture import draw_curves
        from alignkd.pipeline.report.scores.picture import can_be_drawn, draw_scores

        written, text = [folder / PAGE], f"{HEADING_OF_SCORES}\n"
        if self.runs:
            draw_curves(self.runs, folder / CURVES)
            written.append(folder / CURVES)
            text = markdown_table(self.runs, picture=CURVES)
        if self.comparison is not None:
            drawn = can_be_drawn(self.comparison)
            if drawn:
                draw_scores(self.comparison, folder / SCORES)
                written.append(folder / SCORES)
            text += "\n" + markdown_scores(self.comparison, picture=SCORES if drawn else None)
        write_whole(folder / PAGE, text)
        return written

    def html(self, *, refresh: int | None = None) -> str:
        """A page that loads nothing; see `page`."""
        from alignkd.pipeline.report.html.page import page

        return page(self.runs, self.comparison, refresh=refresh)

    @property
    def is_unfinished(self) -> bool:
        """Whether a run is running or was stopped."""
        return any(run.state != "finished" for run in self.runs)

    def _row_json(self, row: Any) -> dict[str, Any]:
        assert self.comparison is not None
        return row_json(row, self.comparison)


def make_report(paths: Sequence[Path], *, smooth: int | None = None, baseline: Path | None = None) -> Report:
    """Load runs and evaluations.

    Args:
        paths: output folders of training runs, and of evaluations.
        smooth: as of `load_runs`.
        baseline: as of `load_evaluations`; it is added to the paths if it is not one of them.

    Raises:
        InputError: a folder has neither a usable metrics file nor scores, or is given twice.
    """
    paths = with_baseline(paths, baseline)
    runs = [path for path in paths if not is_evaluation(path)]
    loaded = load_runs(runs, smooth=smooth) if runs else []
    return Report(runs=tuple(loaded), comparison=compare(load_evaluations(paths, baseline=baseline)))


def is_report(path: Path) -> bool:
    """Whether `path` is a page that `Report.write` wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(100).decode("utf-8", errors="replace").rstrip("\n")
    return first in (HEADING, HEADING_OF_SCORES)


def is_html_page(path: Path) -> bool:
    """Whether `path` is a page that `Report.html` made."""
    from alignkd.pipeline.report.html.page import is_page

    if not path.is_file():
        return False
    with path.open("rb") as file:
        return is_page(file.read(100))
