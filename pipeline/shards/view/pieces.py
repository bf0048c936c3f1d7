"""The text of token ids, from the tokenizer of a store or of the user."""

from pathlib import Path
from typing import TYPE_CHECKING

from alignkd.storage.record.record import IMAGE_TOKEN_ID
from alignkd.vlm.errors import InputError

if TYPE_CHECKING:
    from alignkd.storage.read.store import StoreReader
    from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer

TOKENIZER_FILE = "tokenizer.model"
IMAGE_PIECE = "<image>"


class Pieces:
    """Token id -> piece; ids without a tokenizer, or beyond its vocabulary, become `#id`."""

    def __init__(self, tokenizer: "LegacyLlamaTokenizer | None") -> None:
        self._tokenizer = tokenizer

    def __bool__(self) -> bool:
        return self._tokenizer is not None

    def __call__(self, token: int) -> str:
        if token == IMAGE_TOKEN_ID:
            return IMAGE_PIECE
        if self._tokenizer is None or not 0 <= token < len(self._tokenizer):
            return f"#{token}"
        return self._tokenizer.piece(token)


def open_pieces(reader: "StoreReader", file: Path | None) -> Pieces:
    """Open the tokenizer in `file`, otherwise that of the store; without both, pieces are ids.

    Raises:
        InputError: the file is not a tokenizer, or its vocabulary is not the teacher's.
    """
    if file is None and TOKENIZER_FILE in reader.manifest.attachments:
        file = reader.attachment(TOKENIZER_FILE)
    if file is None:
        return Pieces(None)
    from alignkd.vlm.families.mobilevlm.inputs.tokenizer import LegacyLlamaTokenizer

    tokenizer = LegacyLlamaTokenizer(file)
    if len(tokenizer) > reader.manifest.shapes.vocab_size:
        raise InputError(
            f"{file}: has {len(tokenizer)} pieces, the store's teacher {reader.manifest.shapes.vocab_size}; "
            "give the teacher's tokenizer.model"
        )
    return Pieces(tokenizer)
