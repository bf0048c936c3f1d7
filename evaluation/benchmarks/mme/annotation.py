"""The annotation of MME: text files beside the images, each with two questions and their answers."""

from pathlib import Path

from alignkd.evaluation.folder import annotation
from alignkd.evaluation.question_lines import SUFFIX
from alignkd.evaluation.reading import text_of_file
from alignkd.vlm.errors import InputError

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

# category, image without ending, question as in the text file
Key = tuple[str, str, str]

_INSTRUCTION = SUFFIX.strip()
_ENDING = "Please answer yes or no."
_TEXTS = "questions_answers_YN"


def category_of(question_id: str | int) -> str:
    """The category of a question: the first folder of its id, such as `OCR/0001.png`."""
    return str(question_id).split("/")[0]


def image_of(question_id: str | int) -> str:
    """Name of the image of a question without folders and endings; its text file has the same name."""
    return str(question_id).split("/")[-1].split(".")[0]


class Annotation:
    """The expected answers of all questions.

    Attributes:
        path: the folder of the categories.
        answers: `yes` or `no` for each question.

    Args:
        folder: the folder of MME.

    Raises:
        InputError: there are no text files of MME, or one is malformed.
    """

    def __init__(self, folder: Path) -> None:
        self.path = annotation(folder, "mme")
        if not self.path.is_dir():
            raise InputError(f"{self.path}: not a folder; it should hold a folder for each category of MME")
        self.answers: dict[Key, str] = {}
        for category in (self.path / name for name in PERCEPTION + COGNITION):
            # the folder of images beside them may be missing
            texts = category / _TEXTS if (category / _TEXTS).is_dir() else category
            for file in sorted(texts.glob("*.txt")):
                for question, answer in _pairs(file):
                    self.answers[category.name, file.stem, question] = answer
        if not self.answers:
            raise InputError(f"{self.path}: no text file with questions; copy the .txt files of MME beside its images")

    def find(self, question_id: str | int, prompt: str) -> Key | None:
        """The question of a prompt, without the instruction of the prompt; None if the image has no such question."""
        question = prompt.replace(_INSTRUCTION, "").strip() if _INSTRUCTION in prompt else prompt
        forms = [question] if _ENDING in question else [f"{question} {_ENDING}", f"{question}  {_ENDING}"]
        keys = [(category_of(question_id), image_of(question_id), form) for form in forms]
        return next((key for key in keys if key in self.answers), None)


def _pairs(file: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(text_of_file(file).split("\n"), 1):
        question, tab, answer = line.strip().partition("\t")
        if not line.strip():
            continue
        if not tab or answer.lower() not in ("yes", "no"):
            raise InputError(f"{file}: line {number}: not a question, a tab, and Yes or No; copy the file again")
        pairs.append((question, answer.lower()))
    return pairs
