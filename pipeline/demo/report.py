"""The results of the demo: `report.json`, a page with pictures, and the table on the terminal."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.demo.evaluate import Evaluation, read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths, write_json
from alignkd.pipeline.demo.processes import available_cores
from alignkd.pipeline.demo.settings import ABLATION, SUPERVISED, SUPERVISED_ONLY, Recipe
from alignkd.pipeline.demo.world.questions import SCENE_QUESTION_TYPES, TEXT_QUESTION_TYPES
from alignkd.storage.read.listing import list_shards
from alignkd.storage.schema.attachments import ATTACHMENTS

LABELS = {recipe.name: recipe.label for recipe in (SUPERVISED_ONLY, *ABLATION)}
QUESTION_TYPES = (*SCENE_QUESTION_TYPES, *TEXT_QUESTION_TYPES)
_GAP_HEADING = "of gap"


def make_report(
    folder: DemoFolder,
    students: Mapping[Recipe, Sequence[StudentPaths]],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The content of `report.json`; accuracies are shares of right answers (0..1), for students one per seed."""
    teacher = read_evaluation(folder.teacher_evaluation)
    rows = {row.name: [read_evaluation(student.evaluation) for student in group] for row, group in students.items()}
    return {
        "teacher": {"accuracy": teacher.accuracy, "by_type": teacher.by_type},
        "students": {name: _student(evaluations) for name, evaluations in rows.items()},
        "settings": {**settings, "num_questions": teacher.counts, "machine": _machine()},
        "seconds": {**seconds, "total": round(sum(seconds.values()), 2)},
        "store": _store(folder.store("tqv")),
    }


def write_report(folder: DemoFolder, report: Mapping[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write `report.json` and `report.md`.

    Args:
        pictures: caption -> file.
    """
    write_json(folder.root / "report.json", report)
    write_whole(folder.root / "report.md", markdown(report, pictures, folder.root))


def table(report: Mapping[str, Any]) -> list[list[str]]:
    """Heading and one row per model: accuracy in %, share of the gap recovered, accuracy of each question type."""
    teacher, supervised = report["teacher"], report["students"][SUPERVISED]["accuracy"]
    types = sorted(teacher["by_type"], key=QUESTION_TYPES.index)
    rows = [["", "accuracy", _GAP_HEADING, *types]]
    rows.append(["teacher", _percent([teacher["accuracy"]]), "", *_by_type(teacher["by_type"], types)])
    for name, student in report["students"].items():
        share = gap_recovered(student["accuracy"], supervised, teacher["accuracy"])
        gap = "" if name == SUPERVISED or share is None else f"{100 * share:.0f} %"
        rows.append([LABELS[name], _percent(student["accuracy"]), gap, *_by_type(student["by_type"], types)])
    return rows


def gap_recovered(student: Sequence[float], supervised: Sequence[float], teacher: float) -> float | None:
    """Share of the gap from the supervised student to the teacher that a student closes; None without a gap."""
    gap = teacher - mean(supervised)
    return (mean(student) - mean(supervised)) / gap if gap > 0 else None


def plain_table(report: Mapping[str, Any]) -> str:
    """The table with aligned columns."""
    rows = table(report)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Names are aligned left, figures right.
    aligned = [[f"{cell:{'>' if place else '<'}{widths[place]}}" for place, cell in enumerate(row)] for row in rows]
    lines = ["  ".join(cells).rstrip() for cells in aligned]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(report: Mapping[str, Any], pictures: Mapping[str, Path], root: Path) -> str:
    """The report as a page; pictures are linked relative to `root`."""
    heading, *rows = table(report)
    cells = [heading, [":--", *["--:"] * (len(heading) - 1)], *rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    shown = [
        f"## {caption}\n\n![{caption}]({path.relative_to(root).as_posix()})\n" for caption, path in pictures.items()
    ]
    return "\n".join(["# Align-KD on real handwriting\n", *_setting(report), *lines, "", *_costs(report), *shown])


def _setting(report: Mapping[str, Any]) -> list[str]:
    """Two sentences on the experiment."""
    settings, machine = report["settings"], report["settings"]["machine"]
    num_questions = sum(settings["num_questions"].values())
    seeds = len(report["students"][SUPERVISED]["accuracy"])
    spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    text = (
        f"Accuracy in % (greedy answers, exact match) on {num_questions} questions about scenes of handwriting that "
        f"neither teacher nor students saw in training{spread}. Every student has the same {settings['steps']} steps "
        f"of {settings['micro_batch']} conversations out of {settings['num_scenes']} scenes, in the same order, from "
        f'the same weights. "{_GAP_HEADING}" is the share of the way from the supervised student to the teacher.\n'
    )
    command = "alignkd demo" + "".join(
        f" --{name.replace('_', '-')}" for name in ("quick", "ablation", "train_teacher") if settings[name]
    )
    command += f" --seeds {settings['seeds']}" if settings["seeds"] > 1 else ""
    command += f" --profile {settings['profile']}" if settings["profile"] else ""
    where = f"`{command}` on {machine['cores']} cores of {machine['processor']}, torch {machine['torch']}.\n"
    return [text, where]


def _costs(report: Mapping[str, Any]) -> list[str]:
    store, seconds = report["store"], report["seconds"]
    steps = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items() if name != "total")
    return [
        f"Store: {store['records']} records in {store['shards']} shards, {store['bytes'] / 2**20:.1f} MiB, "
        f"attachments {store['attachment_bytes'] / 2**20:.1f} MiB, "
        f"{store['quarantined']} unusable samples. Time: {steps}; {seconds['total']:.0f} s in all.\n"
    ]


def _student(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    by_type = {name: [evaluation.by_type[name] for evaluation in evaluations] for name in evaluations[0].by_type}
    return {"accuracy": [evaluation.accuracy for evaluation in evaluations], "by_type": by_type}


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


def _percent(values: Sequence[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def _by_type(by_type: Mapping[str, Any], types: Sequence[str]) -> list[str]:
    """Means over seeds."""
    return [f"{100 * mean(value if isinstance(value, list) else [value]):.0f}" for value in map(by_type.get, types)]
