"""Chooses the content of the demo's pictures and draws them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from alignkd.pipeline.demo.evaluate import load_questions, read_evaluation
from alignkd.pipeline.demo.folder import DemoFolder, StudentPaths
from alignkd.pipeline.demo.pictures.attention_maps import attention_maps
from alignkd.pipeline.demo.pictures.draw import draw_attention, draw_losses
from alignkd.pipeline.demo.recipes import SHOWN, Recipe
from alignkd.pipeline.demo.settings import TEMPLATE

# The first test question of each type about three rows is shown, whatever the answers are.
SHOWN_TYPES = ("position", "count", "sum", "exists")


def draw_pictures(folder: DemoFolder, students: Mapping[Recipe, Sequence[StudentPaths]]) -> dict[str, Path]:
    """Caption -> PNG: the losses of every row, then the attention of the teacher and of the rows of a plain demo."""
    metrics = {row.label: [student.metrics for student in group] for row, group in students.items()}
    pictures = {"Losses": draw_losses(folder.picture("losses"), metrics)}
    numbers = shown_questions(folder)
    questions = [sample for sample, _ in load_questions(folder.test_set.conversations)]
    models = {"teacher": (folder.teacher, folder.teacher_evaluation)}
    for row in _shown_rows(list(students)):
        student = students[row][0]
        models[f"student, {row.label}"] = (student.checkpoint, student.evaluation)
    asked = [questions[number] for number in numbers.values()]
    maps = {
        label: attention_maps(
            checkpoint,
            asked,
            folder.test_set.images,
            template=TEMPLATE,
            vision_config=folder.vision_config,
        )
        for label, (checkpoint, _) in models.items()
    }
    answers = {label: read_evaluation(file).answers for label, (_, file) in models.items()}
    for place, (kind, number) in enumerate(numbers.items()):
        pictures[f"Where the models look: {kind}"] = draw_attention(
            folder.picture(f"attention-{kind}"),
            {label: given[number] for label, given in answers.items()},
            {label: found[place] for label, found in maps.items()},
        )
    return pictures


def _shown_rows(rows: Sequence[Recipe]) -> list[Recipe]:
    """The rows of a plain demo that are there; the last row if only the supervised one is."""
    shown = [row for row in rows if row in SHOWN]
    return shown if len(shown) > 1 else [*shown, *rows[-1:]]


def shown_questions(folder: DemoFolder) -> dict[str, int]:
    """Type -> number (in the file) of the first test question of that type about a square picture."""
    data = folder.test_set
    shown: dict[str, int] = {}
    for number, (sample, kind) in enumerate(load_questions(data.conversations)):
        if kind in SHOWN_TYPES and kind not in shown and sample.images and _is_square(data.images / sample.images[0]):
            shown[kind] = number
    return {kind: shown[kind] for kind in SHOWN_TYPES if kind in shown}


def _is_square(image: Path) -> bool:
    """Whether a picture has three rows; one of two rows is padded for the models."""
    with Image.open(image) as picture:
        return picture.width == picture.height
