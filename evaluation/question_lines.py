"""The question files of gqa, textvqa, pope and mme: one JSON object per line."""

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkd.evaluation.folder import image_folder, question_file
from alignkd.evaluation.listed import some
from alignkd.evaluation.question import Question, is_id
from alignkd.evaluation.reading import read_json_lines
from alignkd.vlm.errors import InputError, unreadable

SUFFIX = "\nAnswer the question using a single word or phrase."


@dataclass(frozen=True)
class QuestionLine:
    """One line: `question_id`, file name of the image, text with the suffix, category (pope, mme)."""

    id: str | int
    image: str
    text: str
    category: str


def read_lines(folder: Path, name: str) -> list[QuestionLine]:
    """The lines of the question file in the folder of a benchmark.

    Raises:
        InputError: no such file, or a line of it is not a question.
    """
    path = question_file(folder, name)
    return [_line(values, f"{path}: line {number}") for number, values in read_json_lines(path)]


def read_line_questions(folder: Path, name: str) -> list[Question]:
    """The questions in the folder of a benchmark, with their images.

    Raises:
        InputError: as `read_lines`; the folder of images or an image in it is missing.
    """
    lines, images = read_lines(folder, name), image_folder(folder, name)
    check_images([images / line.image for line in lines])
    return [Question(id=line.id, turn=line.text, prompt=line.text, image=images / line.image) for line in lines]


def check_images(paths: Sequence[Path]) -> None:
    """Refuse images that do not exist.

    Raises:
        InputError: they are missing, or the system does not tell whether they exist.
    """
    missing = [path for path in dict.fromkeys(paths) if not _is_file(path)]
    if missing:
        raise InputError(
            f"{missing[0].parent}: {len(missing)} of {len(set(paths))} images of the questions are missing "
            f"({some([path.name for path in missing])}); copy them there"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise unreadable(path, error) from None  # such as a folder without permission, whose files are not missing


def _line(values: dict[str, object], place: str) -> QuestionLine:
    question_id, image, text = (values.get(key) for key in ("question_id", "image", "text"))
    if not is_id(question_id) or not isinstance(image, str) or not image or not isinstance(text, str):
        raise InputError(f"{place}: not a question with `question_id`, `image` and `text`; copy the file again")
    return QuestionLine(question_id, image, text, str(values.get("category", "")))
