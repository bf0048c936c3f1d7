"""Token ids as they are written in JSON: numbers, digits, or vLLM's `token_id:123`."""

import re
from typing import Any

from alignkd.vlm.errors import SampleError

_ID = re.compile(r"(?:token_id:)?(\d{1,10})", re.ASCII)


def token_id(value: Any, *, digits: bool) -> int:
    """The id of a token.

    Args:
        digits: whether bare digits are an id; where tokens are given as text, `7` is the text of a token.

    Raises:
        SampleError: the text of a token. Several ids may have the same text, so it does not determine the id.
    """
    if type(value) is int and value >= 0:
        return value
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    if match is None or not (digits or value.startswith("token_id:")):
        raise SampleError(
            f"a token is given as the text {value!r:.40}, which does not determine its id; ask vLLM for ids "
            "(return_tokens_as_token_ids, or prompt_logprobs)"
        )
    return int(match[1])


def names_id(value: Any) -> bool:
    """Whether a token is given as `token_id:123`."""
    return isinstance(value, str) and value.startswith("token_id:") and _ID.fullmatch(value) is not None
