"""Text that may not be in the data, because the tokenizer makes control tokens of it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alignkd.vlm.errors import SampleError
from alignkd.vlm.families.huggingface.inputs.processor import LoadedProcessor
from alignkd.vlm.families.huggingface.inputs.text.messages import Message, text_of


@dataclass(frozen=True)
class ReservedTexts:
    """The texts of control tokens.

    Attributes:
        pattern: finds any of them.
    """

    pattern: re.Pattern[str]

    @classmethod
    def of(cls, loaded: LoadedProcessor, framing: Iterable[int]) -> "ReservedTexts":
        """The control tokens of a processor.

        Tokens that were added to the tokenizer as ordinary text (white space, HTML tags, `<tool_call>`) may be in the
        data. The chat template's own tokens may not, whatever the tokenizer calls them.

        Args:
            framing: ids in rendered conversations with images.
        """
        added = loaded.tokenizer.added_tokens_decoder
        control = {*framing, *loaded.stop_ids, loaded.image_token_id}
        texts = {token.content for number, token in added.items() if token.special or number in control}
        texts |= {*loaded.tokenizer.all_special_tokens, loaded.processor.image_token}
        texts = {text for text in texts if text.strip()}
        return cls(re.compile("|".join(map(re.escape, sorted(texts, key=lambda text: (-len(text), text))))))

    def check(self, messages: Sequence[Message]) -> None:
        """Refuse messages that hold one of the texts; a template may join the pieces of a turn.

        Raises:
            SampleError: names the turn and the text.
        """
        for number, message in enumerate(messages):
            if (found := self.pattern.search(text_of(message))) is not None:
                raise SampleError(
                    f"turn {number} holds {found[0]!r}, which this model reads as a control token; rewrite the text"
                )
