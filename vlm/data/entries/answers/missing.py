"""Data sets of questions: entries whose answers a teacher is still to write."""

from collections.abc import Sequence

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.errors import SampleError

UNANSWERED = "question without an answer; run `alignkd generate`"


def without_empty_answers(turns: Sequence[Turn]) -> list[Turn]:
    """The turns without answers of white space: their questions count as not answered.

    Raises:
        SampleError: no question is left.
    """
    kept = [turn for turn in turns if turn.speaker != "gpt" or turn.value.strip()]
    if not any(turn.speaker == "human" for turn in kept):
        raise SampleError("the conversation has no human turn, so there is no question; give one, or remove the sample")
    return kept
