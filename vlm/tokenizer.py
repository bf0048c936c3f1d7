"""The legacy slow LLaMA tokenizer, as a small wrapper over the sentencepiece model.

MobileVLM was trained on the token ids of transformers' *slow, legacy* `LlamaTokenizer`: the text is cut at the
special tokens, and every piece between them is encoded by sentencepiece on its own, each with its own dummy
prefix. Later versions treat the text after `</s>` differently (one token less per extra turn), so the rule is
written down here, where both phases use it, and pinned by golden samples.
"""

import hashlib
import re
from pathlib import Path

import sentencepiece

from vlm.errors import InputError

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")


class LegacyLlamaTokenizer:
    """Token ids of the slow LLaMA tokenizer with `legacy=True`.

    Args:
        model_file: a sentencepiece `tokenizer.model`.

    Raises:
        InputError: the file is missing or no sentencepiece model.
    """

    def __init__(self, model_file: Path) -> None:
        if not model_file.is_file():
            raise InputError(f"{model_file}: no such file; a checkpoint needs its sentencepiece tokenizer.model")
        self.model_file = model_file
        self._bytes = model_file.read_bytes()
        try:
            self._sp = sentencepiece.SentencePieceProcessor(model_proto=self._bytes)
        except RuntimeError as error:
            raise InputError(f"{model_file}: not a sentencepiece model; copy tokenizer.model again") from error
        self.bos_token_id: int = self._sp.bos_id()
        self.eos_token_id: int = self._sp.eos_id()
        self._special_ids = {token: self._sp.piece_to_id(token) for token in SPECIAL_TOKENS}
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")

    def __len__(self) -> int:
        return int(self._sp.get_piece_size())

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Token ids of `text`; special tokens in the text become their own ids."""
        ids = [self.bos_token_id] if add_bos else []
        for piece in self._special_pattern.split(text):
            if piece in self._special_ids:
                ids.append(self._special_ids[piece])
            elif piece:
                ids.extend(self._sp.encode(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`, special tokens left out."""
        special = set(self._special_ids.values())
        return str(self._sp.decode([token for token in ids if token not in special]))

    def piece(self, token_id: int) -> str:
        """The piece of one id, as sentencepiece writes it (U+2581 for a blank)."""
        return str(self._sp.id_to_piece(token_id))

    @property
    def fingerprint(self) -> str:
        """sha256 of the model file and of the splitting rule."""
        return hashlib.sha256(b"legacy-llama-slow:1:" + self._bytes).hexdigest()
