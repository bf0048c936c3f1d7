"""Accuracy of a checkpoint on single questions: greedy generation, exact match after stripping blanks."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.models.ask import dtype_on
from alignkd.vlm.data.entries.entry import sample_of_entry
from alignkd.vlm.data.images import read_images
from alignkd.vlm.data.open import open_data
from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.source import DataSet
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER, check_turns
from alignkd.vlm.errors import InputError, SampleError
from alignkd.vlm.families.generation import generate
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.families.mobilevlm.inputs.templates import TemplateName, tokenize_question
from alignkd.vlm.families.mobilevlm.weights.checkpoint import MobileVLMCheckpoint
from alignkd.vlm.families.shared_images import SharedImages
from alignkd.vlm.hardware.devices import usable_device
from alignkd.vlm.hardware.memory_faults import memory_errors
from alignkd.vlm.inputs.examples import Example, ImageArrays

QUESTION_TYPES_KEY = "question_types"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question with the right answer and the model's.

    Attributes:
        id: id of the sample.
        images: paths relative to the image folder.
        question: without the image placeholder.
        question_type: as the file gives it, or None.
    """

    id: str
    images: tuple[str, ...]
    question: str
    question_type: str | None
    expected: str
    found: str

    @property
    def right(self) -> bool:
        """Whether the model's answer equals the expected one exactly."""
        return self.found == self.expected


@dataclass(frozen=True)
class Evaluation:
    """The answers of a checkpoint in the order of the file; every figure is computed from them."""

    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0..1."""
        return sum(answer.right for answer in self.answers) / len(self.answers)

    @property
    def counts(self) -> dict[str, int]:
        """Questions of each type, in the order of their first appearance; untyped questions are left out."""
        return dict(Counter(answer.question_type for answer in self.answers if answer.question_type is not None))

    @property
    def by_type(self) -> dict[str, float]:
        """Share of right answers of each type, 0..1."""
        right = Counter(answer.question_type for answer in self.answers if answer.right)
        return {name: right[name] / count for name, count in self.counts.items()}

    def to_json(self) -> dict[str, Any]:
        """Figures and answers; `from_json` reads the answers and computes the figures again."""
        answers = [{**asdict(answer), "right": answer.right} for answer in self.answers]
        return {"accuracy": self.accuracy, "by_type": self.by_type, "counts": self.counts, "answers": answers}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Evaluation":
        """Inverse of `to_json`."""
        fields = Answer.__dataclass_fields__
        return cls(
            tuple(
                Answer(**{name: _tupled(entry[name]) for name in fields})  # JSON has no tuples
                for entry in document["answers"]
            )
        )


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def evaluate(
    checkpoint: Path,
    conversations: Path,
    images: Path,
    *,
    template: TemplateName,
    vision_config: Path | None = None,
    max_new_tokens: int = 16,
    batch: int = 128,
    device: str | None = None,
) -> Evaluation:
    """Ask a checkpoint every question of a LLaVA-style file of single turns.

    Args:
        checkpoint: folder in the official layout; run in its own dtype on a GPU, in float32 on a CPU.
        conversations: each entry has one human and one gpt turn; `question_types`, one per turn, is optional.
        images: folder to which image paths are relative.
        template: prompt template with which the checkpoint was trained.
        vision_config: overrides the checkpoint's `mm_vision_tower`.
        max_new_tokens: longest answer.
        batch: largest number of questions that are answered together.
        device: torch device; None takes a GPU if there is one.

    Raises:
        InputError: unusable checkpoint, device or file, an entry of several turns, or an image that cannot be read.
    """
    questions = load_questions(conversations)
    opened = MobileVLMCheckpoint.open(checkpoint, vision_config=vision_config, weights=False)
    builder = opened.preparation(template).caching_images()
    place = usable_device(device)
    model = opened.load_model(dtype=getattr(torch, dtype_on(place, opened)), device=place)
    answers, shared = dict[int, Answer](), SharedImages(model)
    for numbers in _batches([sample for sample, _ in questions], builder, batch):
        prompts = [_prompt(builder, questions[number][0], conversations, images) for number in numbers]
        with memory_errors(f"lower the batch (now {batch}), or take the device cpu"):
            found = generate(
                model,
                [prompt.example for prompt in prompts],
                limits=[max_new_tokens] * len(prompts),
                stop_ids=builder.stop_ids,
                vision=shared.encoded(prompts),
            )
        for number, continuation in zip(numbers, found, strict=True):
            answers[number] = _answer(*questions[number], builder.decode(continuation.ids))
    return Evaluation(tuple(answers[number] for number in range(len(questions))))


def load_questions(conversations: Path) -> list[tuple[Sample, str | None]]:
    """The single-turn samples of a file, each with its question type if the file gives it.

    Raises:
        InputError: no such file, invalid JSON, an empty list, or an entry that is not a single question.
    """
    file = open_data(DataSet(path=conversations))
    if not len(file):
        raise InputError(f"{conversations}: contains no questions; give a file with at least one")
    questions = []
    for index in range(len(file)):
        entry = file.entry(index)
        sample = sample_of_entry(index, entry)
        try:
            _check_single_question(sample)
        except SampleError as error:
            raise InputError(f"{_where(conversations, sample)}: {error}") from error
        questions.append((sample, _question_type(entry)))
    return questions


def _check_single_question(sample: Sample) -> None:
    if sample.problem:
        raise SampleError(sample.problem)
    check_turns(sample.turns, num_images=len(sample.images))
    if (speakers := [turn.speaker for turn in sample.turns]) != ["human", "gpt"]:
        raise SampleError(f"turns of {', '.join(speakers)}, expected human, gpt; give each question its own entry")


def _question_type(entry: Mapping[str, Any]) -> str | None:
    types = entry.get(QUESTION_TYPES_KEY)
    return str(types[0]) if isinstance(types, list) and types else None


@dataclass(frozen=True, kw_only=True)
class _Prompt:
    """A question as the model takes it; its images have their paths as names."""

    example: Example
    image_hashes: tuple[str, ...]

    @property
    def images(self) -> tuple[ImageArrays, ...]:
        return self.example.images


def _prompt(builder: MobileVLMPreparation, sample: Sample, conversations: Path, images: Path) -> _Prompt:
    try:
        example = builder.build_question(sample.turns[:1], read_images(images, sample.images))
        return _Prompt(example=example, image_hashes=sample.images)
    except SampleError as error:
        raise InputError(f"{_where(conversations, sample)}: {error}") from error


def _batches(samples: Sequence[Sample], builder: MobileVLMPreparation, size: int) -> Iterator[list[int]]:
    """Numbers of at most `size` samples each, sorted so that prompts of similar length are together."""

    def length(number: int) -> tuple[int, int]:
        sample, num_images = samples[number], len(samples[number].images)
        ids = tokenize_question(
            sample.turns[:1], template=builder.template, num_images=num_images, tokenizer=builder.tokenizer
        )
        return num_images, len(ids)

    order = sorted(range(len(samples)), key=length)
    return (order[start : start + size] for start in range(0, len(order), size))


def _answer(sample: Sample, question_type: str | None, text: str) -> Answer:
    question, answer = (turn.value for turn in sample.turns)
    return Answer(
        id=sample.id,
        images=sample.images,
        question=question.replace(IMAGE_PLACEHOLDER, "").strip(),
        question_type=question_type,
        expected=answer.strip(),
        found=text.strip(),
    )


def _where(conversations: Path, sample: Sample) -> str:
    return f"{conversations}: sample {sample.id!r} (index {sample.index})"


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write the answers and their figures as JSON; the file appears complete or not at all."""
    write_whole(path, json.dumps(evaluation.to_json(), indent=1, ensure_ascii=False) + "\n")


def read_evaluation(path: Path) -> Evaluation:
    """Read what `write_evaluation` wrote."""
    return Evaluation.from_json(read_json(path))
