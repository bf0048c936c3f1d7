"""Answers in batches are those of one question at a time; what cannot be asked is written down with its reason."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_families
import torch

from alignkd.evaluation.benchmark import BENCHMARKS
from alignkd.evaluation.question import Question
from alignkd.pipeline.evaluation import answering as answering_module
from alignkd.pipeline.evaluation import parts as parts_module
from alignkd.pipeline.evaluation.answering import Answering
from alignkd.pipeline.evaluation.journal import Answered, Process
from alignkd.pipeline.evaluation.parts import PARTS, AnswerParts
from alignkd.pipeline.evaluation.prompts import preparation_for, sample_of
from alignkd.teacher_dump.operation.control import DumpControl
from alignkd.teacher_dump.operation.stops import DumpStopped, DumpStopSignals
from alignkd.vlm.data.images import image_files
from alignkd.vlm.families.family import Checkpoint, VisionLanguageModel
from alignkd.vlm.families.generation import generate
from alignkd.vlm.families.huggingface.inputs.preparation import HuggingFacePreparation
from alignkd.vlm.families.open import open_checkpoint
from alignkd.vlm.families.shared_images import SharedImages

PROCESS = Process(device="cpu", batch=1, versions={})
Answer = Callable[..., AnswerParts]
FAMILIES = ("mobilevlm", "qwen3_vl", "smolvlm")


@pytest.fixture(scope="module")
def small_questions(eval_golden: Path) -> list[Question]:
    """Questions of different lengths, two of them text alone, about pictures of different shapes; short answers."""
    sqa = list(BENCHMARKS["sqa"].questions(eval_golden / "sqa" / "data"))
    text_alone = [one for one in sqa if one.image is None]
    found = [*BENCHMARKS["textvqa"].questions(eval_golden / "textvqa" / "data")[:5], *text_alone[:2]]
    found += BENCHMARKS["gqa"].questions(eval_golden / "gqa" / "data")[:4]
    return [replace(one, max_new_tokens=3 + number % 4) for number, one in enumerate(found)]


@pytest.fixture
def answered(eval_golden: Path, tmp_path: Path) -> Answer:
    """answered(model, checkpoint, questions, batch=..., name=..., control=...): the answers, in parts of their own."""

    def run(
        model: VisionLanguageModel,
        checkpoint: Checkpoint,
        questions: Sequence[Question],
        *,
        batch: int = 4,
        name: str = "out",
        control: DumpControl | None = None,
    ) -> AnswerParts:
        parts = parts_in(tmp_path / name, questions)
        preparation = preparation_for(checkpoint, questions)
        Answering(
            model=model,
            preparation=preparation,
            control=control or DumpControl(),
            folder=eval_golden,
            batch=batch,
        ).answer(parts)
        return parts

    return run


def parts_in(folder: Path, questions: Sequence[Question]) -> AnswerParts:
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    return AnswerParts(folder, questions, PROCESS)


@pytest.fixture(scope="module")
def brief(brief_model: Path, golden: Path) -> tuple[VisionLanguageModel, Checkpoint]:
    checkpoint = open_checkpoint(brief_model, vision_config=golden / "clip")
    return checkpoint.load_model(), checkpoint


def texts(parts: AnswerParts) -> list[str]:
    return [one.text for one in parts.answers()]


def without_time(answers: list[Answered]) -> list[Answered]:
    return [one.model_copy(update={"seconds": 0.0}) for one in answers]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_in_batches_are_those_of_the_originals_loop(
    family: str,
    answered: Answer,
    small_questions: list[Question],
    brief: tuple[VisionLanguageModel, Checkpoint],
    eval_golden: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # a model with random weights writes special tokens, which make no text
    monkeypatch.setattr(HuggingFacePreparation, "decode", lambda self, ids: f"the tokens {list(ids)}")
    model, checkpoint = brief
    if family != "mobilevlm":
        checkpoint = open_checkpoint(tiny_families.build(family, tmp_path / "model", seed=5))
        model = checkpoint.load_model()
    preparation = preparation_for(checkpoint, small_questions)
    alone = []
    for position, question in enumerate(small_questions):
        sample = sample_of(question, position, eval_golden)
        prompt = preparation.build_question(sample.turns, image_files(sample))
        (one,) = generate(
            model,
            [prompt],
            limits=[question.max_new_tokens],
            stop_ids=preparation.stop_ids,
            num_tokens=preparation.num_tokens,
        )
        alone.append(preparation.decode(one.ids).strip())
    found = answered(model, checkpoint, small_questions, batch=5)
    assert texts(found) == alone and len(set(alone)) > 3
    assert [one.position for one in found.answers()] == list(range(len(small_questions)))
    assert all(
        one.tokens <= question.max_new_tokens for one, question in zip(found.answers(), small_questions, strict=True)
    )


def test_a_batch_that_does_not_fit_is_halved(
    answered: Answer,
    small_questions: list[Question],
    brief: tuple[VisionLanguageModel, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, checkpoint = brief
    whole = answered(model, checkpoint, small_questions, name="whole")
    decoding, sizes = model.decoding, []

    def fits_two(prompts: Sequence[Any], vision: Any) -> object:
        sizes.append(len(prompts))
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decoding(prompts, vision)

    monkeypatch.setattr(model, "decoding", fits_two)
    control = DumpControl()
    halved = answered(model, checkpoint, small_questions, name="halved", control=control)
    assert texts(halved) == texts(whole) and max(sizes) == 4 and control.status.halved == 3


def test_the_tower_sees_each_image_once(
    answered: Answer,
    small_questions: list[Question],
    brief: tuple[VisionLanguageModel, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where questions about an image are in several blocks; without room for two images, again and again."""
    monkeypatch.setattr(parts_module, "BLOCK", 4)
    model, checkpoint = brief
    asked = [replace(one, image=small_questions[number % 2 * 4].image) for number, one in enumerate(small_questions)]
    asked.append(next(one for one in small_questions if one.image is None))
    alone = answered(model, checkpoint, asked, name="alone", batch=1)
    encode, sizes = model.encode_images, []

    def counted(images: Sequence[Any], *rest: Any, **options: Any) -> Any:
        sizes.append(len(images))
        return encode(images, *rest, **options)

    monkeypatch.setattr(model, "encode_images", counted)
    assert texts(answered(model, checkpoint, asked, name="together", batch=4)) == texts(alone)
    assert sum(sizes) == 2
    sizes.clear()
    one = model.config.vision_tokens * model.config.hidden_size * 4
    monkeypatch.setattr(answering_module, "SharedImages", partial(SharedImages, kept_bytes=one))
    assert texts(answered(model, checkpoint, asked, name="no-room", batch=1)) == texts(alone)
    assert 2 < sum(sizes) <= len(small_questions)


def test_questions_that_cannot_be_asked_are_listed_and_asked_again(
    answered: Answer, small_questions: list[Question], brief: tuple[VisionLanguageModel, Checkpoint], tmp_path: Path
) -> None:
    model, checkpoint = brief
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a picture")
    long = replace(small_questions[3], turn="a " * 4000)
    asked = [*small_questions[:2], replace(small_questions[2], image=broken), long]
    control = DumpControl()
    found = answered(model, checkpoint, asked, control=control).answers()
    assert [one.unusable is None for one in found] == [True, True, False, False] and control.status.errors == 2
    assert "broken.jpg" in (found[2].unusable or "") and "leaves no room" in (found[3].unusable or "")
    image = small_questions[2].image
    assert isinstance(image, Path)
    broken.write_bytes(image.read_bytes())
    control = DumpControl()
    again = answered(model, checkpoint, asked, control=control).answers()
    assert (control.status.samples, control.status.errors) == (2, 1)
    assert [again[:2], again[2].unusable] == [found[:2], None]


def test_the_rest_is_asked_after_a_stop_between_two_batches(
    answered: Answer,
    small_questions: list[Question],
    brief: tuple[VisionLanguageModel, Checkpoint],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A first Ctrl-C ends a block early, a signal such as SIGTERM within a batch; blocks of three questions."""
    monkeypatch.setattr(parts_module, "BLOCK", 3)
    model, checkpoint = brief
    whole = answered(model, checkpoint, small_questions, name="whole", batch=2)
    assert len(list((tmp_path / "whole" / PARTS).iterdir())) == 4
    stops = DumpStopSignals()
    finishes = DumpControl(stops=stops, progress=lambda status: setattr(stops, "finishing", True))
    assert len(answered(model, checkpoint, small_questions, batch=2, control=finishes).answers()) == 2
    gives_up = DumpStopSignals()

    def give_up(status: object) -> None:
        gives_up.received, gives_up._giving_up = 15, True

    with pytest.raises(DumpStopped):
        answered(model, checkpoint, small_questions, batch=2, control=DumpControl(stops=gives_up, progress=give_up))
    assert len(parts_in(tmp_path / "out", small_questions).answers()) == 3
    rest = DumpControl()
    found = answered(model, checkpoint, small_questions, batch=2, control=rest)
    assert rest.status.samples == len(small_questions) - 3
    assert without_time(found.answers()) == without_time(whole.answers())
