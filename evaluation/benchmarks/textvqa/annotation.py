"""The annotation of TextVQA: `TextVQA_0.5.1_val.json`, with the answers of ten people to each question."""

from pathlib import Path

from alignkd.evaluation.folder import annotation
from alignkd.evaluation.listed import quoted, some, value_of
from alignkd.evaluation.reading import read_json
from alignkd.vlm.errors import InputError

NUM_PEOPLE = 10
# image and question in lower case
Key = tuple[str | int, str]


def read_annotation(folder: Path) -> dict[Key, tuple[str, ...]]:
    """The answers of the ten people to each question.

    Raises:
        InputError: the file is missing, is not an annotation of TextVQA, or a question has another number of answers.
    """
    path = annotation(folder, "textvqa")
    values = read_json(path)
    try:
        entries = values["data"]
        found = {(entry["image_id"], entry["question"].lower()): tuple(entry["answers"]) for entry in entries}
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not an annotation of TextVQA ({value_of(error)}); copy the file again") from None
    for (image, question), people in found.items():
        asked = f"{quoted(question)} on image {some([image])}"
        if len(people) != NUM_PEOPLE:
            raise InputError(f"{path}: {len(people)} instead of {NUM_PEOPLE} answers to {asked}; copy it again")
        if not all(isinstance(answer, str) for answer in people):
            raise InputError(f"{path}: an answer to {asked} is not a text; copy it again")
    if not found:
        raise InputError(f"{path}: no question; copy the file again")
    return found
