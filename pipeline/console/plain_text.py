"""Text for a terminal: control characters of ids, reasons and conversations are shown, not sent.

A terminal obeys the characters that begin with ESC: it moves the cursor, changes its title, answers into the input of
the shell. Samples come from data sets and stores that strangers made.
"""

import io
from typing import Any

# C0 but line feed and tab, DEL, and C1, of which U+009B begins sequences as ESC [ does; written as in JSON
_ESCAPED = {code: f"\\u{code:04x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def plain(text: str) -> str:
    """`text` with control characters as JSON writes them, such as `\\u001b`; line feeds and tabs are kept."""
    return text if text.isprintable() else text.translate(_ESCAPED)


class PlainTextStream(io.TextIOWrapper):
    """A text stream over the bytes of another one that writes `plain` text."""

    @classmethod
    def over(cls, stream: io.TextIOWrapper) -> "PlainTextStream":
        """Same bytes, encoding and buffering; the other stream must live on, because it closes the bytes at its end."""
        settings: dict[str, Any] = {
            "encoding": stream.encoding,
            "errors": stream.errors,
            "line_buffering": stream.line_buffering,
            "write_through": stream.write_through,
        }
        return cls(stream.buffer, **settings)

    def write(self, text: str, /) -> int:
        super().write(plain(text))
        return len(text)
