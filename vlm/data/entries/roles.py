"""Names of roles in data sets -> speakers of turns."""

from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import SampleError, one_line

_KNOWN: Mapping[str, str] = {
    **dict.fromkeys(("human", "user", "question", "prompter", "usr"), "human"),
    **dict.fromkeys(
        ("gpt", "assistant", "chatgpt", "bot", "bing", "bard", "model", "answer", "ai"),
        "gpt",
    ),
    **dict.fromkeys(("system", "developer"), "system"),
}
_OF_TOOLS = frozenset(
    ("tool", "tools", "tool_call", "tool_response", "function", "function_call", "observation", "ipython")
)


def speaker_of(role: Any, roles: Mapping[str, str]) -> str:
    """The speaker that a role stands for.

    Args:
        role: the value in the data; case and white space around it do not count.
        roles: further names in lower case -> speaker; they go before the known ones.

    Raises:
        SampleError: the role is not known; names `data.roles`.
    """
    name = str(role).strip().lower()
    if (speaker := roles.get(name) or _KNOWN.get(name)) is not None:
        return speaker
    shown = one_line(repr(role))[:40]
    if name in _OF_TOOLS:
        raise SampleError(f"role {shown} is that of a tool, which is not read; remove the sample")
    raise SampleError(f"unknown role {shown}; name it under data.roles as human, gpt or system")
