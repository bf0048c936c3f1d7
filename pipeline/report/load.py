"""The figures of training runs for `alignkd report`, as their output folders hold them; nothing is recomputed."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignkd.pipeline.report.lines import figures_in
from alignkd.storage import StoreError
from alignkd.student_train.output import (
    BY_SOURCE,
    DOMAIN_WEIGHT,
    FINISHED,
    KIND_PREFIX,
    METRICS,
    MOVED,
    VALIDATION,
    loss_names,
    read_configuration,
    read_finished,
    validation_loss_names,
)
from alignkd.vlm.errors import InputError, unreadable

LARGEST_WINDOW = 50
SPEED = ("seconds", "tokens_per_second")
# drawn as they are, beside the losses and what an objective moves
FIGURES = ("learning_rate", "grad_norm", *SPEED)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training run.

    Attributes:
        name: shortest end of its path that differs from those of the other runs.
        path: its output folder.
        extends: output folder of the earlier run whose steps come first, if both were given; otherwise None.
        state: `finished`, or `unfinished` while it is running or after it was stopped.
        steps: optimiser steps done.
        samples_seen: samples consumed.
        samples_by_kind: samples consumed by kind.
        by_source: for each source of a run with several: `samples` consumed, and the mean of `loss` and of each term
            over its samples in the last `window` steps that have the term; where weights of domains follow the student
            also its mean `weight` over all steps.
        skipped: steps whose loss or gradient was not finite.
        window: number of steps in a mean of losses.
        final: mean of each loss over the last `window` steps that have it.
        seconds_per_step, tokens_per_second, padding, wait_share: medians over the steps; None if the run did not record
            them.
        peak_memory_mib: peak memory of the (first) device.
        curves: for each loss, (step, running mean) of the steps that have it. `loss` is the weighted sum of the others.
        moved: for each figure that an objective moves (`output.MOVED`), (step, value) of the steps.
        figures: the same for learning rate, norm of the gradient, seconds and tokens per second.
        validation: for each loss, (step, value) of the validations that have it; empty for a run without validation.
        best_step: step of the best validation; None if there is none.
    """

    name: str
    path: Path
    extends: Path | None
    state: str
    steps: int
    samples_seen: int
    samples_by_kind: dict[str, int]
    by_source: dict[str, dict[str, float]]
    skipped: int
    window: int
    final: dict[str, float]
    seconds_per_step: float | None
    tokens_per_second: float | None
    padding: float | None
    wait_share: float | None
    peak_memory_mib: float | None
    curves: dict[str, list[tuple[int, float]]]
    moved: dict[str, list[tuple[int, float]]]
    figures: dict[str, list[tuple[int, float]]]
    validation: dict[str, list[tuple[int, float]]]
    best_step: int | None


def load_runs(paths: Sequence[Path], *, smooth: int | None = None) -> list[Run]:
    """Every run, under a name of its own.

    A run and the run that it extends (`train.extend`) are one run if both are given: the steps of the earlier one up to
    the first step of the extension, then those of the extension.

    Args:
        paths: output folders of training, or their metrics files.
        smooth: number of steps in a running mean; None takes a tenth of the steps of each run, at most 50.

    Raises:
        InputError: a folder has no usable metrics file, or a run is given twice.
    """
    folders = list(map(run_folder, paths))
    if twice := {folder for folder in folders if folders.count(folder) > 1}:
        raise InputError(f"{min(twice)}: given twice; compare different runs")
    lines = {folder: _metrics(folder) for folder in folders}
    earlier = _extended_runs(folders)
    shown = [folder for folder in folders if folder not in earlier.values()]
    names = short_names(shown)
    return [
        _load(folder, name, _with_earlier(folder, lines, earlier), smooth, extends=earlier.get(folder))
        for folder, name in zip(shown, names, strict=True)
    ]


def run_folder(path: Path) -> Path:
    """The output folder of a run that is given as folder or as metrics file."""
    return path.parent if path.name == METRICS else path


def best_value(run: Run, name: str) -> float | None:
    """A validation loss at the best step of a run."""
    return dict(run.validation.get(name, [])).get(-1 if run.best_step is None else run.best_step)


def report_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One object per run, curves included."""
    return [asdict(run) for run in runs]


def losses_of(runs: Sequence[Run]) -> list[str]:
    """The losses that any of the runs has, in the order of their metrics files."""
    return [*dict.fromkeys(name for run in runs for name in (*run.curves, *run.validation))]


def moved_figures_of(runs: Sequence[Run]) -> list[str]:
    """The figures that an objective of any of the runs moves."""
    return [name for name in MOVED if any(name in run.moved for run in runs)]


def validated_losses_of(runs: Sequence[Run]) -> list[str]:
    """The losses that a validation of any of the runs has."""
    return [*dict.fromkeys(name for run in runs for name in run.validation)]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and up to `window - 1` before it."""
    return [statistics.fmean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]


def default_window(steps: int) -> int:
    """Number of steps in a mean of a run of `steps`: the mean at the end must not contain the beginning."""
    return min(LARGEST_WINDOW, max(1, steps // 10))


def _extended_runs(folders: Sequence[Path]) -> dict[Path, Path]:
    """Folder of an extension -> folder of the run that it extends, for those that are both among `folders`."""
    by_place = {folder.resolve(): folder for folder in folders}
    asked = {folder: _extended_by(folder) for folder in folders}
    return {folder: by_place[run] for folder, run in asked.items() if run in by_place and by_place[run] != folder}


def _extended_by(folder: Path) -> Path | None:
    """`train.extend.run` of a run's configuration, resolved."""
    train = (read_configuration(folder) or {}).get("train")
    extend = train.get("extend") if isinstance(train, dict) else None
    run = extend.get("run") if isinstance(extend, dict) else None
    return Path(run).resolve() if isinstance(run, str) else None


def _with_earlier(
    folder: Path, lines: Mapping[Path, list[dict[str, Any]]], earlier: Mapping[Path, Path]
) -> list[dict[str, Any]]:
    """The steps of a run, after those of the runs that it extends."""
    found, seen = lines[folder], {folder}
    while (folder := earlier.get(folder, folder)) not in seen:
        seen.add(folder)
        found = [line for line in lines[folder] if line["step"] < found[0]["step"]] + found
    return found


def _load(folder: Path, name: str, lines: list[dict[str, Any]], smooth: int | None, *, extends: Path | None) -> Run:
    validations = validation_lines(folder)
    window = default_window(lines[-1]["step"]) if smooth is None else smooth
    points = _points(lines, loss_names)
    curves = {
        name: list(zip([step for step, _ in found], running_mean([v for _, v in found], window), strict=True))
        for name, found in points.items()
    }
    kinds = {key.removeprefix(KIND_PREFIX) for line in lines for key in line if key.startswith(KIND_PREFIX)} - {"seen"}
    return Run(
        name=name,
        path=folder,
        extends=extends,
        state="finished" if _is_finished(folder) else "unfinished",
        steps=lines[-1]["step"],
        samples_seen=lines[-1]["samples_seen"],
        samples_by_kind={kind: sum(line.get(KIND_PREFIX + kind, 0) for line in lines) for kind in sorted(kinds)},
        by_source=_by_source(lines, window),
        skipped=sum(bool(line.get("skipped")) for line in lines),
        window=window,
        final={name: curve[-1][1] for name, curve in curves.items()},
        seconds_per_step=_median(lines, "seconds"),
        tokens_per_second=_median(lines, "tokens_per_second"),
        padding=_median(lines, "padding"),
        wait_share=_median(lines, "wait_share"),
        peak_memory_mib=max(_known(lines, "peak_memory_mib"), default=None),
        curves=curves,
        moved=_points(lines, lambda line: [name for name in MOVED if name in line]),
        figures=_points(lines, lambda line: [name for name in FIGURES if name in line]),
        validation=_points(validations, validation_loss_names),
        best_step=validations[-1].get("best_step") if validations else None,
    )


def _by_source(lines: Sequence[dict[str, Any]], window: int) -> dict[str, dict[str, float]]:
    sources = dict.fromkeys(source for line in lines for source in line.get(BY_SOURCE, {}))
    return {
        source: _of_source([line.get(BY_SOURCE, {}).get(source, {}) for line in lines], window) for source in sources
    }


def _of_source(figures: Sequence[dict[str, Any]], window: int) -> dict[str, float]:
    """Figures of one source; means are weighted by its samples in each step."""
    found: dict[str, float] = {"samples": sum(step.get("samples", 0) for step in figures)}
    for name in dict.fromkeys(name for step in figures for name in step if name != "samples"):
        last = [(step[name], step["samples"]) for step in figures if step.get(name) is not None][-window:]
        if name == DOMAIN_WEIGHT and last:  # also of steps without a sample of the source
            found[name] = statistics.fmean(step[name] for step in figures if step.get(name) is not None)
        elif any(samples for _, samples in last):
            found[name] = statistics.fmean(*map(list, zip(*last, strict=True)))
    return found


def _points(
    lines: Sequence[dict[str, Any]], names_of: Callable[[dict[str, Any]], list[str]]
) -> dict[str, list[tuple[int, float]]]:
    """For each loss, (step, value) of the lines that have it; a loss that none has is left out."""
    names = dict.fromkeys(name for line in lines for name in names_of(line))
    points = {name: [(line["step"], line[name]) for line in lines if line.get(name) is not None] for name in names}
    return {name: found for name, found in points.items() if found}


def validation_lines(folder: Path) -> list[dict[str, Any]]:
    """The validations of a run; none for a run without them.

    Raises:
        InputError: the file cannot be read, or is none of a training run.
    """
    file = folder / VALIDATION
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(file, error) from error
    otherwise = "is not the validation file of a training run; restore it or move it away"
    return figures_in(content, file, ("step", "loss", "best_step"), otherwise=otherwise)


def _metrics(folder: Path) -> list[dict[str, Any]]:
    file = folder / METRICS
    try:
        content = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"{file}: cannot be read ({error.strerror}); give the output folder of a training run, or of an evaluation"
        ) from error
    except OSError as error:
        raise unreadable(file, error) from error
    otherwise = "is not the metrics file of a training run; give the run's output folder"
    lines = figures_in(content, file, ("step", "samples_seen", "loss"), otherwise=otherwise)
    if not lines:
        raise InputError(f"{file}: has no step yet; wait until the run has done its first one")
    return lines


def _is_finished(folder: Path) -> bool:
    try:
        return read_finished(folder) is not None
    except StoreError as error:
        raise InputError(f"{folder / FINISHED}: is damaged ({error}); run the training again") from error


def _median(lines: Sequence[dict[str, Any]], name: str) -> float | None:
    values = _known(lines, name)
    return statistics.median(values) if values else None


def _known(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if line.get(name) is not None]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as make all names different."""
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
