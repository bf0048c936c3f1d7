"""The page: everything is in it, and it may load nothing and run nothing but its own script."""

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from importlib.resources import files
from typing import Any

from alignkd.pipeline.report.html.charts import Chart, charts_of
from alignkd.pipeline.report.html.markup import Markup, element, table
from alignkd.pipeline.report.html.pictures import pictures_of
from alignkd.pipeline.report.html.scores import scores_section
from alignkd.pipeline.report.html.settings import configurations, differing, seeds_of
from alignkd.pipeline.report.html.svg import LEFT, NUM_COLOURS, RIGHT, WIDTH, colour_class, drawn
from alignkd.pipeline.report.load import Run
from alignkd.pipeline.report.scores.comparison import Comparison
from alignkd.pipeline.report.table import table_rows

# the beginning of every page: whether a file is one, see `is_page`
_BEGINNING = "<!doctype html>\n<!-- alignkd report -->\n"
NOTE = (
    "Losses are means over the last steps that have the term; curves are running means over as many steps. Seconds, "
    "tokens and waiting are medians over all steps. A validation loss is that of the best validation, a star."
)


def page(runs: Sequence[Run], comparison: Comparison | None, *, refresh: int | None = None) -> str:
    """The page of runs and their scores.

    Args:
        refresh: seconds after which a browser loads the file again, while it is written again and again.
    """
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    charts = charts_of(runs)
    found = configurations(runs)
    sections = [
        _curves(runs, charts),
        _section("Figures", table(table_rows(runs)), element("p", NOTE, class_="note")) if runs else "",
        _seeds(runs, found),
        _section("Benchmark scores", scores_section(comparison)) if comparison is not None else "",
        _settings(runs, found),
        _pictures(runs),
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy(style, script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="refresh", content=refresh) if refresh is not None else "",
        element("title", "alignkd report"),
        element("style", Markup(style)),
    )
    data = element("script", _data(runs, charts), type="application/json", id="data")
    body = element("body", _header(runs), *sections, data, element("script", Markup(script)))
    whole = _BEGINNING + element("html", head, body, lang="en") + "\n"
    return whole.encode(errors="replace").decode()  # a name of a file may hold what is no text


def is_page(first: bytes) -> bool:
    """Whether a file that begins so is such a page."""
    return first.startswith(_BEGINNING.encode())


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this style, this script, pictures in the page, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(content: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"


def _header(runs: Sequence[Run]) -> Markup:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    going = [run.name for run in runs if run.state != "finished"]
    remark = f"; unfinished: {', '.join(going)}" if going else ""
    return element(
        "header",
        element("h1", "Training runs" if runs else "Evaluations"),
        element("p", f"written {now}{remark}", class_="faint", id="written"),
    )


def _section(title: str, *children: object) -> Markup:
    return element("section", element("h2", title), *children)


def _curves(runs: Sequence[Run], charts: Sequence[Chart]) -> Markup:
    if not charts:
        return Markup("")
    figures = [
        element(
            "figure",
            element("figcaption", chart.title, element("span", chart.note, class_="note")),
            drawn(chart, number),
            element("p", class_="readout", aria_live="polite"),
        )
        for number, chart in enumerate(charts)
    ]
    windows = " or ".join(map(str, sorted({run.window for run in runs})))
    note = f"Running means are over {windows} steps. The values under the pointer are shown in the chart."
    return _section(
        "Curves", _legend(runs), element("p", note, class_="note"), element("div", *figures, class_="charts")
    )


def _legend(runs: Sequence[Run]) -> Markup:
    entries = []
    for number, run in enumerate(runs):
        line = element("polyline", class_=f"line {colour_class(number)}", points="0,5 26,5")
        box = element("input", type="checkbox", checked="", value=number)
        sample = element("svg", line, viewBox="0 0 26 10", aria_hidden="true")
        state = "" if run.state == "finished" else f" (unfinished, {run.steps:,} steps)"
        entries.append(element("li", element("label", box, sample, f"{run.name}{state}")))
    return element("ul", *entries, class_="runs")


def _seeds(runs: Sequence[Run], found: Sequence[dict[str, str]]) -> Markup:
    groups = seeds_of(runs, found)
    if not groups:
        return Markup("")
    names = list(dict.fromkeys(name for group in groups for name in group.losses))
    rows: list[list[object]] = [["", *(", ".join(run.name for run in group.runs) for group in groups)]]
    for name in names:
        cells = [group.losses.get(name) for group in groups]
        rows.append(
            [name.replace("_", " "), *("-" if one is None else f"{one[0]:.4g} ± {one[1]:.2g}" for one in cells)]
        )
    note = "Runs whose settings differ in the seed only: mean and standard deviation over the runs."
    return _section("Several seeds", table(rows), element("p", note, class_="note"))


def _settings(runs: Sequence[Run], found: Sequence[dict[str, str]]) -> Markup:
    if len(runs) < 2:
        return Markup("")
    rows = differing(found)
    without = [run.name for run, one in zip(runs, found, strict=True) if not one]
    remark = f" No configuration was kept of {', '.join(without)}." if without else ""
    if not rows:
        return _section("Settings that differ", element("p", f"None, apart from the output.{remark}"))
    cells = [["", *(run.name for run in runs)], *([key, *values] for key, values in rows.items())]
    return _section("Settings that differ", table(cells), element("p", remark.strip(), class_="note") if remark else "")


def _pictures(runs: Sequence[Run]) -> Markup:
    figures = pictures_of(runs)
    return _section("Attention", element("div", *figures, class_="charts pictures")) if figures else Markup("")


def _data(runs: Sequence[Run], charts: Sequence[Chart]) -> Markup:
    """What the script shows; `<` is written so that no text can end the element."""
    document: dict[str, Any] = {
        "width": WIDTH,
        "left": LEFT,
        "right": RIGHT,
        "colours": NUM_COLOURS,
        "runs": [run.name for run in runs],
        "charts": [
            [{"run": line.run, "validation": line.validation, "points": line.points} for line in chart.lines]
            for chart in charts
        ],
    }
    shown = json.dumps(document, separators=(",", ":"), allow_nan=False)
    return Markup(shown.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
