"""The question file of ScienceQA: a JSON list of conversations, of which the first turn is the question."""

from pathlib import Path
from typing import Any

from alignkd.evaluation.folder import image_folder, question_file
from alignkd.evaluation.listed import value_of
from alignkd.evaluation.question import Question, is_id
from alignkd.evaluation.question_lines import check_images
from alignkd.evaluation.reading import read_json
from alignkd.vlm.errors import InputError

IMAGE_MARK = "<image>"
_SUFFIX = "\nAnswer with the option's letter from the given choices directly."
_MAX_NEW_TOKENS = 1024


def read_questions(folder: Path) -> list[Question]:
    """The questions of a folder of ScienceQA, those without an image included.

    The original pads no image here, whatever the checkpoint sets.

    Raises:
        InputError: a file or an image is missing; the question file is not that of ScienceQA.
    """
    path = question_file(folder, "sqa")
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: not a JSON list of questions; copy the file again")
    images = image_folder(folder, "sqa")
    questions = [_question(entry, images, f"{path}: entry {index}") for index, entry in enumerate(entries)]
    check_images([question.image for question in questions if isinstance(question.image, Path)])
    return questions


def _question(entry: Any, images: Path, place: str) -> Question:
    try:
        question_id, text = entry["id"], entry["conversations"][0]["value"]
        turn = text.replace(IMAGE_MARK, "").strip() + _SUFFIX
        image = images / entry["image"] if "image" in entry else None
        if not is_id(question_id):
            raise TypeError(f"id {value_of(question_id)}")
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"{place}: not a question with `id` and `conversations` ({value_of(error)}); copy it again"
        ) from None
    return Question(
        id=question_id,
        turn=turn,
        prompt=turn if image is None else f"{IMAGE_MARK}\n{turn}",
        image=image,
        pads_image=False,
        max_new_tokens=_MAX_NEW_TOKENS,
    )
