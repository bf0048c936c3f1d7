"""The text of token ids, from the tokenizer of a store or of the user."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from alignkd.storage.record.record import IMAGE_TOKEN_ID
from alignkd.vlm.errors import InputError

if TYPE_CHECKING:
    from alignkd.storage.read.store import StoreReader

TOKENIZER_FILE = "tokenizer.model"
# of models of transformers
JSON_FILE = "processor/tokenizer.json"
IMAGE_PIECE = "<image>"
BLANK = "\u2581"


class Tokenizer(Protocol):
    """What is asked of a tokenizer here; `len` is the number of its ids."""

    def __len__(self) -> int: ...

    def piece(self, token: int) -> str:
        """The text of an id."""


class Pieces:
    """Token id -> piece; ids without a tokenizer, or beyond its vocabulary, become `#id`."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    def __bool__(self) -> bool:
        return self._tokenizer is not None

    def __call__(self, token: int) -> str:
        if token == IMAGE_TOKEN_ID:
            return IMAGE_PIECE
        if self._tokenizer is None or not 0 <= token < len(self._tokenizer):
            return f"#{token}"
        return self._tokenizer.piece(token)


class JsonTokenizer:
    """A `tokenizer.json`; a piece is the text of the id alone, with a mark in place of a leading blank."""

    def __init__(self, file: Path) -> None:
        """Raises InputError: the file is not such a tokenizer."""
        from tokenizers import Tokenizer as Reader

        try:
            # not from_file, which refuses names that are not UTF-8
            self._tokenizer = Reader.from_buffer(file.read_bytes())
        except Exception as error:  # the library raises Exception itself
            line = " ".join(str(error).split())
            raise InputError(f"{file}: is not a tokenizer.json ({line:.200}); give the teacher's tokenizer") from None

    def __len__(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def piece(self, token: int) -> str:
        text: str = self._tokenizer.decode([token], skip_special_tokens=False)
        if not text or "\ufffd" in text:  # a part of a character
            text = self._tokenizer.id_to_token(token) or f"#{token}"
        text = text.replace("\n", "\\n")
        return BLANK + text[1:] if text.startswith(" ") else text


def open_pieces(reader: "StoreReader", file: Path | None) -> Pieces:
    """Open the tokenizer in `file`, otherwise that of the store; without both, pieces are ids.

    Raises:
        InputError: the file is not a tokenizer, or its vocabulary is not the teacher's.
    """
    for name in (TOKENIZER_FILE, JSON_FILE):
        if file is None and name in reader.manifest.attachments:
            file = reader.attachment(name)
    if file is None:
        return Pieces(None)
    tokenizer: Tokenizer
    if file.suffix == ".json":
        tokenizer = JsonTokenizer(file)
    else:
        from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer

        tokenizer = LegacyLlamaTokenizer(file)
    if len(tokenizer) > reader.manifest.shapes.vocab_size:
        raise InputError(
            f"{file}: has {len(tokenizer)} pieces, the store's teacher {reader.manifest.shapes.vocab_size}; "
            "give the teacher's tokenizer"
        )
    return Pieces(tokenizer)
