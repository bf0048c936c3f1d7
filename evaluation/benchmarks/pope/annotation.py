"""The annotation of POPE: `coco/coco_pope_CATEGORY.json`, and whether it belongs to the questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.evaluation.folder import annotation
from alignkd.evaluation.listed import some
from alignkd.evaluation.question_lines import SUFFIX, QuestionLine
from alignkd.evaluation.reading import read_json_lines
from alignkd.vlm.errors import InputError

_PREFIX, _ENDING = "coco_pope_", ".json"
# Releases differ in the spelling of up to 2 % of the questions, with the same images and labels.
_SPELLING_SHARE = 0.1


@dataclass(frozen=True)
class Label:
    """One line of an annotation: image, question without the suffix, whether the object is there."""

    image: str
    text: str
    is_yes: bool


@dataclass(frozen=True)
class Category:
    """The labels of a category, in the order of its file."""

    name: str
    path: Path
    labels: tuple[Label, ...]


def read_annotation(folder: Path) -> list[Category]:
    """The categories of a folder of POPE, by name; other files in the annotation folder are ignored.

    Raises:
        InputError: there is no annotation, or a file is not an annotation of POPE.
    """
    place = annotation(folder, "pope")
    if not place.is_dir():
        raise InputError(f"{place}: not a folder; it should hold coco_pope_random.json and the other categories")
    files = sorted(file for file in place.iterdir() if file.name.startswith(_PREFIX) and file.name.endswith(_ENDING))
    if not files:
        raise InputError(f"{place}: no coco_pope_CATEGORY.json in it; docs/evaluation.md names the source")
    return [_category(file) for file in files]


def pairing_problem(category: Category, questions: Sequence[QuestionLine]) -> str | None:
    """Why the labels of a category do not belong to the questions that are answered; they are paired by position.

    Returns:
        One line for another number of labels, another image, or other questions; None if they belong together.
    """
    place, labels = f"{category.path}: category {category.name}", category.labels
    if len(labels) != len(questions):
        return f"{place}: {len(labels)} labels for {len(questions)} answers"
    for number, (question, label) in enumerate(zip(questions, labels, strict=True), 1):
        if question.image != label.image:
            answered = f"answer {number} (question {question.id}) of {some([question.image])}"
            return f"{place}: label {number} is of image {some([label.image])}, {answered}"
    other = num_other_texts(category, questions)
    if other > _SPELLING_SHARE * len(labels):
        return f"{place}: {other} of {len(labels)} labels are of another question on the same image"
    return None


def num_other_texts(category: Category, questions: Sequence[QuestionLine]) -> int:
    """How many questions have another text in the annotation."""
    pairs = zip(questions, category.labels, strict=False)
    return sum(question.text.removesuffix(SUFFIX) != label.text for question, label in pairs)


def _category(path: Path) -> Category:
    labels = tuple(_label(values, f"{path}: line {number}") for number, values in read_json_lines(path))
    return Category(path.name.removeprefix(_PREFIX).removesuffix(_ENDING), path, labels)


def _label(values: dict[str, object], place: str) -> Label:
    image, text, label = (values.get(key) for key in ("image", "text", "label"))
    if not isinstance(image, str) or not isinstance(text, str) or label not in ("yes", "no"):
        raise InputError(f"{place}: not an `image`, a `text` and a `label` of yes or no; copy the file again")
    return Label(image, text, label == "yes")
