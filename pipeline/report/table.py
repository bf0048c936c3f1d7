"""A table of training runs: one column per run."""

from collections.abc import Callable, Iterator, Sequence

from alignkd.pipeline.console.printing import aligned, format_count
from alignkd.pipeline.report.load import Run, best_value, losses_of, moved_figures_of, validated_losses_of
from alignkd.student_train.output import DOMAIN_WEIGHT

HEADING = "# Training runs"
LABELS = {"loss": "loss (weighted sum)"}  # other losses are labelled by their name


def markdown_table(runs: Sequence[Run], *, picture: str) -> str:
    """A page with the table, the picture and an explanation of the figures."""
    rows = table_rows(runs)
    width = len(runs)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|:--|{'--:|' * width}")
    note = (
        "Losses are means over the last steps that have the term; curves are running means over as many steps. "
        "A term of weight 0 is not computed. Seconds, tokens and waiting are medians over all steps."
    )
    if validated_losses_of(runs):
        note += (
            " Validation losses are those of the best validation; in the picture they are dashed, with a star there."
        )
    return "\n".join([HEADING, "", *lines, "", note, "", f"![Losses by step]({picture})", ""])


def plain_table(runs: Sequence[Run]) -> str:
    """The same table for a terminal."""
    return "\n".join(aligned(table_rows(runs)))


def table_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The cells; the first row has the names of the runs, the first column those of the figures."""
    kinds = sorted({kind for run in runs for kind in run.samples_by_kind})
    figures: list[tuple[str, Callable[[Run], str]]] = [
        *([("extends", _extended)] if any(run.extends for run in runs) else []),
        ("state", lambda run: run.state),
        ("steps", lambda run: f"{run.steps:,}"),
        ("samples seen", lambda run: f"{run.samples_seen:,}"),
        *((f"samples {kind.replace('_', ' ')}", _kind(kind)) for kind in kinds),
        ("skipped steps", lambda run: str(run.skipped)),
        ("losses are means of", lambda run: format_count(run.window, "step")),
        *((LABELS.get(name, name.replace("_", " ")), _final(name)) for name in losses_of(runs)),
        *((f"{name.replace('_', ' ')} in the last step", _last(name)) for name in moved_figures_of(runs)),
        *_rows_by_source(runs),
        *_validation_rows(runs),
        ("seconds per step", lambda run: _number(run.seconds_per_step, ".3g")),
        ("tokens per second", lambda run: _number(run.tokens_per_second, ",.0f")),
        ("padded / real positions", lambda run: _number(run.padding, ".3f")),
        ("waiting for data", lambda run: _number(run.wait_share, ".1%")),
        ("peak memory, MiB", lambda run: _number(run.peak_memory_mib, ",.0f")),
    ]
    return [["", *(run.name for run in runs)], *([label, *(cell(run) for run in runs)] for label, cell in figures)]


def _rows_by_source(runs: Sequence[Run]) -> Iterator[tuple[str, Callable[[Run], str]]]:
    for source in dict.fromkeys(source for run in runs for source in run.by_source):
        yield f"source {source}: samples", _of_source(source, "samples", ",d")
        if any(DOMAIN_WEIGHT in run.by_source.get(source, {}) for run in runs):
            yield f"source {source}: mean weight", _of_source(source, DOMAIN_WEIGHT, ".3f")
        for name in losses_of(runs):
            yield f"source {source}: {name.replace('_', ' ')}", _of_source(source, name, ".4g")


def _of_source(source: str, name: str, form: str) -> Callable[[Run], str]:
    return lambda run: _number(run.by_source.get(source, {}).get(name), form)


def _validation_rows(runs: Sequence[Run]) -> list[tuple[str, Callable[[Run], str]]]:
    """The validation losses at the best step; no row if no run has a validation."""
    if not (names := validated_losses_of(runs)):
        return []
    labels = {name: LABELS.get(name, name.replace("_", " ")) for name in names}
    return [
        ("best validation at step", lambda run: _number(run.best_step, ",d")),
        *((f"validation {labels[name]}", _best(name)) for name in names),
    ]


def _best(name: str) -> Callable[[Run], str]:
    return lambda run: _number(best_value(run, name), ".4g")


def _extended(run: Run) -> str:
    return "-" if run.extends is None else run.extends.name


def _kind(kind: str) -> Callable[[Run], str]:
    return lambda run: _number(run.samples_by_kind.get(kind), ",d")


def _final(name: str) -> Callable[[Run], str]:
    return lambda run: _number(run.final.get(name), ".4g")


def _last(name: str) -> Callable[[Run], str]:
    return lambda run: _number(run.moved[name][-1][1] if name in run.moved else None, ".4g")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
