"""Which tokens are trained: what the assistant writes and the token that ends its turn."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

import numpy as np
from numpy.typing import NDArray

from alignkd.vlm.errors import SampleError, one_line
from alignkd.vlm.families.huggingface.inputs.text.chat import Answer
from alignkd.vlm.families.huggingface.inputs.text.text_tokens import FastTokenizer, TextTokens
from alignkd.vlm.inputs.labels import IGNORE_LABEL


def labels_of(
    tokens: TextTokens, answers: Sequence[Answer], *, stop_ids: AbstractSet[int], tokenizer: FastTokenizer
) -> NDArray[np.int32]:
    """Labels of a rendered conversation: int32 [L], `IGNORE_LABEL` where not supervised.

    A token that holds a character of an answer is supervised, and so is a stop token right after it.

    Args:
        answers: in the text that the tokens are of.

    Raises:
        SampleError: the tokens of an answer do not read as the answer.
    """
    labels = np.full(len(tokens.ids), IGNORE_LABEL, np.int32)
    for answer in answers:
        places = _places(tokens, answer, stop_ids)
        ids = tokens.ids[places]
        stop = tokenizer.text(ids[-1:]) if len(ids) and int(ids[-1]) in stop_ids else ""
        if not tokenizer.is_same_text(ids, answer.text + stop):
            raise SampleError(
                f"the tokens of answer {one_line(answer.text)[:60]!r} read {one_line(tokenizer.text(ids))[:80]!r}; "
                "remove characters that are not in the vocabulary, and those that run into the text after the answer"
            )
        labels[places] = ids
    return labels


def _places(tokens: TextTokens, answer: Answer, stop_ids: AbstractSet[int]) -> NDArray[np.int64]:
    places = tokens.overlapping(answer.start, answer.end)
    after = int(places[-1]) + 1 if len(places) else len(tokens.ids)
    if after < len(tokens.ids) and int(tokens.ids[after]) in stop_ids:
        return np.append(places, after)
    return places
