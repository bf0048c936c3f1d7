"""The results of the demo: `report.json`, and a page with table and pictures."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.demo.evaluate import Evaluation, read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths, write_json
from alignkd.pipeline.demo.processes import available_cores
from alignkd.pipeline.demo.recipes import SUPERVISED, Recipe, Store
from alignkd.pipeline.demo.results.bootstrap import Interval, intervals
from alignkd.pipeline.demo.results.figures import visual, visual_accuracy, without_looking
from alignkd.pipeline.demo.results.table import GAP_HEADING, differences, markdown_table, table
from alignkd.pipeline.demo.run_config import steps_of
from alignkd.pipeline.demo.settings import DemoSettings
from alignkd.storage.read.listing import list_shards
from alignkd.storage.schema.attachments import ATTACHMENTS


def make_report(
    folder: DemoFolder,
    students: Mapping[Recipe, Sequence[StudentPaths]],
    settings: DemoSettings,
    options: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The content of `report.json`; accuracies are shares of right answers (0..1), for students one per seed.

    `accuracy` counts the questions that need the picture; `by_type` has every type of question.
    """
    teacher = read_evaluation(folder.teacher_evaluation)
    rows = {row: [read_evaluation(student.evaluation) for student in group] for row, group in students.items()}
    return {
        **accuracies(rows, teacher, settings, folder.training_set.conversations),
        "settings": {
            **options,
            **asdict(settings),
            "num_questions": teacher.counts,
            "num_visual": len(visual(teacher.answers)),
            "machine": _machine(),
        },
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "stores": {name: _store(folder.store(store)) for name, store in _stores(students).items()},
    }


def accuracies(
    rows: Mapping[Recipe, Sequence[Evaluation]], teacher: Evaluation, settings: DemoSettings, training_set: Path
) -> dict[str, Any]:
    """The part of the report that the tables show.

    Args:
        rows: row -> one evaluation per seed, all on the questions of `teacher`; the supervised row is among them.
        teacher: the teacher's answers.
        settings: preset of the demo.
        training_set: conversations whose most frequent answers are the baseline.
    """
    named = {row.name: evaluations for row, evaluations in rows.items()}
    found = intervals(named, teacher, base=SUPERVISED, partners={row.name: row.partner for row in rows})
    return {
        "teacher": _single(teacher),
        "majority": _single(without_looking(training_set, teacher)),
        "students": {
            row.name: {
                "label": row.label,
                "steps": steps_of(row, settings),
                **_student(evaluations),
                **_compared(row.partner, *found.get(row.name, (None, None))),
            }
            for row, evaluations in rows.items()
        },
    }


def _stores(rows: Iterable[Recipe]) -> dict[str, Store]:
    return {row.store.name: row.store for row in rows}


def _single(evaluation: Evaluation) -> dict[str, Any]:
    return {"accuracy": visual_accuracy(evaluation), "by_type": evaluation.by_type}


def _student(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    by_type = {name: [evaluation.by_type[name] for evaluation in evaluations] for name in evaluations[0].by_type}
    return {"accuracy": [visual_accuracy(evaluation) for evaluation in evaluations], "by_type": by_type}


def _compared(partner: str, share: Interval | None, difference: Interval | None) -> dict[str, Any]:
    return {
        "gap": None if share is None else asdict(share),
        "partner": partner,
        "difference": None if difference is None else asdict(difference),
    }


def write_report(folder: DemoFolder, report: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write `report.json` and `report.md`.

    Args:
        pictures: caption -> file.
    """
    write_json(folder.root / "report.json", report)
    write_whole(folder.root / "report.md", markdown(report, pictures, folder.root))


def markdown(report: Mapping[str, Any], pictures: Mapping[str, Path], root: Path) -> str:
    """The report as a page; pictures are linked relative to `root`."""
    shown = [
        f"## {caption}\n\n![{caption}]({path.relative_to(root).as_posix()})\n" for caption, path in pictures.items()
    ]
    tables = [markdown_table(table(report))]
    if compared := differences(report):
        tables.append(markdown_table(compared))
    return "\n".join(["# Align-KD on real handwriting\n", *_setting(report), *tables, *_costs(report), *shown])


def command(report: Mapping[str, Any]) -> str:
    """The command that made the report."""
    settings = report["settings"]
    flags = [f"--{name.replace('_', '-')}" for name in ("quick", "ablation", "train_teacher") if settings[name]]
    flags += [f"--{name} {settings[name]}" for name in ("rows", "objectives") if settings[name]]
    flags += [f"--seeds {settings['seeds']}"] if settings["seeds"] > 1 else []
    flags += [f"--profile {settings['profile']}"] if settings["profile"] else []
    return " ".join(["alignkd demo", *flags])


def too_little(report: Mapping[str, Any]) -> str | None:
    """That students of `--quick` show no effect, and the command for results; None without `--quick`."""
    settings = report["settings"]
    if not settings["quick"]:
        return None
    whole = command({**report, "settings": {**settings, "quick": False}})
    return (
        f"Students of {settings['steps']} steps are trained too little to compare the rows; for results, run "
        f"`{whole} --out FOLDER` with a new folder."
    )


def _setting(report: Mapping[str, Any]) -> list[str]:
    """A few sentences on the experiment."""
    settings, machine = report["settings"], report["settings"]["machine"]
    seeds = len(report["students"][SUPERVISED]["accuracy"])
    spread = f", mean ± standard deviation over {seeds} seeds, and the least of them" if seeds > 1 else ", one seed"
    text = (
        f"Accuracy in % (greedy answers, exact match) on {settings['num_visual']} questions about scenes of "
        f"handwriting that neither teacher nor students saw in training{spread}. Students of one seed start from the "
        f"same weights and have the same order of the {settings['num_scenes']} training scenes; a step has "
        f"{settings['micro_batch']} "
        f'conversations. "{GAP_HEADING}" is the share of the way from the supervised student to the teacher. '
        "`arithmetic` and `compare` need no picture and do not count in the first columns. The row without a model "
        "gives every question the most frequent answer to its type in the training set.\n"
    )
    if seeds > 1:
        text += (
            "Intervals (95 %) are bootstrap intervals over seeds and scenes, seeds and scenes paired between rows.\n"
        )
    if note := too_little(report):
        text += f"{note}\n"
    where = f"`{command(report)}` on {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}.\n"
    return [text, where]


def _costs(report: Mapping[str, Any]) -> list[str]:
    seconds = report["seconds"]
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "total")
    stores = [
        f"Store {name}: {store['records']} records in {store['shards']} shards, {store['bytes'] / 2**20:.1f} MiB, "
        f"attachments {store['attachment_bytes'] / 2**20:.1f} MiB, {store['quarantined']} unusable samples. "
        for name, store in report["stores"].items()
    ]
    return ["".join(stores) + f"Time: {steps}; {seconds['total']:.0f} s in all.\n"]


def _store(path: Path) -> dict[str, int]:
    shards = list_shards(path)
    return {
        "records": sum(shard.num_records for shard in shards),
        "bytes": sum(shard.num_bytes for shard in shards),
        "shards": len(shards),
        "quarantined": sum(shard.num_quarantined for shard in shards),
        "attachment_bytes": sum(file.stat().st_size for file in (path / ATTACHMENTS).iterdir()),
    }


def _machine() -> dict[str, Any]:
    return {"cores": available_cores(), "processor": _processor(), "torch": torch.__version__}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in info.read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ]
        if names:
            return names[0]
    return platform.processor() or platform.machine()
