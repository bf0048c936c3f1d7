"""The questions of a benchmark as prompts of a checkpoint.

For MobileVLM these are the prompts of the original's evaluation: template v1 around the text as it stands, the image
as the checkpoint sets it, or resized and cropped where the benchmark asks for that. Other families take their own chat
template and image processing.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alignkd.evaluation.question import Question
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turn_checks import IMAGE_PLACEHOLDER
from alignkd.vlm.data.turns import Turn
from alignkd.vlm.families.family import Checkpoint
from alignkd.vlm.families.mobilevlm.inputs.preparation import MobileVLMPreparation
from alignkd.vlm.inputs.examples import Preparation

NOT_THE_PAPERS = (
    "the prompts are the checkpoint's own chat template and image processing, not those of the paper, so these numbers "
    "are not comparable with its Table 1"
)


def preparation_for(checkpoint: Checkpoint, questions: Sequence[Question]) -> Preparation:
    """What makes the prompts of a benchmark, by `build_question`.

    Raises:
        InputError: unusable tokenizer or processor.
    """
    found = checkpoint.preparation()
    if not isinstance(found, MobileVLMPreparation):
        return found
    processor = found.image_processor
    if not all(question.pads_image for question in questions if question.image is not None):
        processor = replace(processor, pad_to_square=False)
    return replace(found, image_processor=processor, verbatim=True)


def sample_of(question: Question, position: int, folder: Path) -> Sample:
    """A question as a sample without an answer.

    Args:
        position: number of the question in its benchmark, from 0; the sample's index.
        folder: the benchmark's folder, to which the name of an image file is relative where it lies in it.
    """
    text = question.turn if question.image is None else f"{IMAGE_PLACEHOLDER}\n{question.turn}"
    images: tuple[str, ...] = ()
    contents: tuple[bytes | None, ...] = ()
    if isinstance(question.image, Path):
        if not question.image.is_relative_to(folder):
            folder = question.image.parent
        images = (str(question.image.relative_to(folder)),)
    elif question.image is not None:
        images, contents = (f"image of question {question.id}",), (question.image,)
    turns = (Turn("human", text),)
    return Sample(
        index=position,
        id=str(question.id),
        images=images,
        contents=contents,
        turns=turns,
        folder=folder if images else None,
    )
