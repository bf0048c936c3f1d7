"""Which supervised positions of a sample belong to answers that a model wrote."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.data.turns import Turn
from alignkd.vlm.inputs.examples import Preparation, Tokens
from alignkd.vlm.inputs.image_file import image_size
from alignkd.vlm.inputs.labels import IGNORE_LABEL


def generated_positions(
    preparation: Preparation, turns: Sequence[Turn], files: Sequence[bytes], tokens: Tokens
) -> NDArray[np.bool_]:
    """For each supervised position whether its label is of a generated answer, bool [N].

    Where a conversation has answers of both kinds, it is tokenised a second time with only the generated ones trained;
    no image is decoded for that.

    Args:
        files: bytes of each image file.
        tokens: of the same conversation.

    Raises:
        SampleError: with only some of its answers trained, the conversation is unusable.
    """
    labels = tokens.labels[1:]
    is_supervised = labels != IGNORE_LABEL
    trained = [turn.generated is not None for turn in turns if turn.speaker == "gpt" and turn.trained]
    if all(trained) or not any(trained):
        return np.full(int(is_supervised.sum()), any(trained))
    others_masked = [replace(turn, trained=turn.trained and turn.generated is not None) for turn in turns]
    again = preparation.tokenize(others_masked, list(map(image_size, files)))
    assert np.array_equal(again.input_ids, tokens.input_ids), "a mask does not change ids"
    is_generated: NDArray[np.bool_] = again.labels[1:][is_supervised] != IGNORE_LABEL
    return is_generated
