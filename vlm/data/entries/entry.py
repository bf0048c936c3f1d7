"""One entry of a data file -> a sample."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignkd.vlm.data.entries.answers.generated import generated_turns
from alignkd.vlm.data.entries.answers.masks import trained_turns
from alignkd.vlm.data.entries.answers.missing import UNANSWERED, without_empty_answers
from alignkd.vlm.data.entries.content import Mark, content_of
from alignkd.vlm.data.entries.dialects import ENTRY_KEYS, LISTS, Conversation, conversation_of
from alignkd.vlm.data.entries.images import EntryImage, image_of, images_of
from alignkd.vlm.data.entries.keys import check_entry_keys, check_turn_keys
from alignkd.vlm.data.entries.media_marks import check_marks
from alignkd.vlm.data.entries.plain import plain
from alignkd.vlm.data.entries.reading import EntryReading
from alignkd.vlm.data.entries.roles import speaker_of
from alignkd.vlm.data.entries.system import with_system
from alignkd.vlm.data.sample import Sample
from alignkd.vlm.data.turn_checks import HOW_TO_MARK, IMAGE_PLACEHOLDER, check_trained
from alignkd.vlm.data.turns import Turn, questions_without_answer
from alignkd.vlm.errors import SampleError

_AS_IT_IS = EntryReading()


def sample_of_entry(index: int, entry: Any, reading: EntryReading = _AS_IT_IS) -> Sample:
    """The sample of an entry in any dialect; one that cannot be used is a sample with a `problem`.

    Args:
        index: position in the data set.
        entry: an object of JSON values; it may also hold bytes, and values of NumPy.
        reading: settings of the data set.
    """
    if not isinstance(entry, dict):
        return _unusable(index, f"#{index}", (), "the entry is not a JSON object", reading)
    entry = plain(entry)
    sample_id = _printable(str(entry.get("id", f"#{index}")))
    beside: tuple[EntryImage, ...] = ()
    try:
        beside = images_of(entry, reading)
        turns, images = _read(entry, beside, reading)
    except SampleError as error:
        return _unusable(index, sample_id, beside, str(error), reading)
    contents = tuple(image.content for image in images)
    unanswered = _is_unanswered(turns, reading)
    return Sample(
        index=index,
        id=sample_id,
        images=tuple(image.name for image in images),
        turns=turns,
        problem=UNANSWERED if unanswered else None,
        unanswered=unanswered,
        contents=contents if any(content is not None for content in contents) else (),
        folder=reading.images,
    )


def _unusable(index: int, sample_id: str, images: Sequence[EntryImage], problem: str, reading: EntryReading) -> Sample:
    names = tuple(image.name for image in images)
    return Sample(index=index, id=sample_id, images=names, turns=(), problem=problem, folder=reading.images)


def _read(
    entry: Mapping[str, Any], beside: tuple[EntryImage, ...], reading: EntryReading
) -> tuple[tuple[Turn, ...], tuple[EntryImage, ...]]:
    """The turns of an entry and their images in order.

    Args:
        beside: the images that the entry names beside its conversation.
    """
    conversation = _conversation(entry, reading, has_images=bool(beside))
    turns, marks = _turns(conversation, entry, reading)
    if reading.answers == "missing":
        turns = without_empty_answers(turns)
    images = _images(marks, beside, reading)
    is_pair = not conversation.key and not conversation.is_caption
    check_entry_keys(entry, read=conversation.read, has_images=bool(images), is_pair=is_pair)
    if not images:
        if conversation.is_caption:
            raise SampleError("a caption without an image; name the image under 'image', or remove the sample")
        check_marks(turns)
    elif not marks and not conversation.is_llava:
        check_marks(turns, has_images=True)
        turns = _images_first(turns, len(images))
    if not _is_unanswered(turns, reading):
        check_trained(turns)
    return with_system(turns, entry, reading.system), images


def _is_unanswered(turns: Sequence[Turn], reading: EntryReading) -> bool:
    return reading.answers == "missing" and questions_without_answer(turns) > 0


def _conversation(entry: Mapping[str, Any], reading: EntryReading, *, has_images: bool) -> Conversation:
    try:
        return conversation_of(entry, reading.answers)
    except SampleError:
        # a key with a meaning is the better reason
        check_entry_keys(entry, read=ENTRY_KEYS | set(LISTS), has_images=has_images)
        raise


def _turns(
    conversation: Conversation, entry: Mapping[str, Any], reading: EntryReading
) -> tuple[list[Turn], list[Mark]]:
    """The turns as the entry has them, system prompts included, and the places of images in their texts."""
    texts, marks = [], []
    for number, turn in enumerate(conversation.turns):
        check_turn_keys(number, turn.keys)
        text, own = content_of(number, turn.content)
        if _printable(text) != text:
            raise SampleError(f"turn {number} holds half a surrogate pair (\\ud800 to \\udfff alone); correct the text")
        texts.append(text)
        marks += own
    speakers = [turn.speaker or speaker_of(turn.role, reading.roles) for turn in conversation.turns]
    keys = [turn.keys for turn in conversation.turns]
    trained = trained_turns(entry, keys, speakers)
    return list(map(Turn, speakers, texts, trained, generated_turns(keys, speakers))), marks


def _images(marks: Sequence[Mark], beside: tuple[EntryImage, ...], reading: EntryReading) -> tuple[EntryImage, ...]:
    """The image of each mark; those beside the conversation where marks name none, whatever their number."""
    if all(mark.value is None and mark.index is None for mark in marks):
        return beside
    images, used, following = [], set(), iter(range(len(beside)))
    for mark in marks:
        if mark.value is not None:
            images.append(image_of("an image part", mark.value, reading))
            continue
        number = next(following, len(beside)) if mark.index is None else mark.index
        if number >= len(beside):
            raise SampleError(
                f"the conversation shows image {number + 1} of the entry, which has {len(beside)}; name it under "
                "'images'"
            )
        used.add(number)
        images.append(beside[number])
    # an entry may list the images of its parts again
    if unused := [image.name for number, image in enumerate(beside) if number not in used and image not in images]:
        raise SampleError(f"image {unused[0]!r} of the entry is shown by no turn; {HOW_TO_MARK}, or remove the image")
    return tuple(images)


def _images_first(turns: Sequence[Turn], count: int) -> list[Turn]:
    """The images in front of the first question, each on a line of its own."""
    first = next((number for number, turn in enumerate(turns) if turn.speaker == "human"), None)
    if first is None:
        raise SampleError("the conversation has images but no human turn; give the turn that shows them")
    text = "\n".join([IMAGE_PLACEHOLDER] * count + ([turns[first].value] if turns[first].value else []))
    return [*turns[:first], Turn("human", text), *turns[first + 1 :]]


def _printable(text: str) -> str:
    """`text` with lone surrogates escaped: JSON allows them, but UTF-8 and therefore tokenizers do not."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
