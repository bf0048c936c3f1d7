"""LLaMA's slow tokenizer as MobileVLM was trained with it, as a small wrapper over the sentencepiece model.

The original uses the slow `LlamaTokenizer` of transformers 4.33.1: the text is split at the special tokens, and
sentencepiece encodes each piece separately, each (`legacy`) with its own dummy prefix. Later versions treat the text
after `</s>` differently (one token less per extra turn). So the rule is implemented here for both phases, and golden
samples pin it.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import sentencepiece

from alignkd.vlm.errors import InputError, SampleError, unreadable
from alignkd.vlm.families.mobilevlm.inputs.tokenizer_rules import SPECIAL_TOKENS, TokenizerRules, read_rules

PROBE_TEXTS = (
    "Hello world",
    "A chat. USER: What is it? ASSISTANT: a cup</s>USER: And that? ASSISTANT: two  spoons</s>",
    " <s>in</s> front <unk> of",
    "one\ntwo\t three\r\n\n",
    "3.14 and 1234567890",
    "na\u00efve \u4e2d\u6587 \U0001f600\U0001f3fd \ufb01 \u2460",
    "   ",
)
"""Texts for `LegacyLlamaTokenizer.probe_ids`: all cases in which tokenizers have differed."""

_SPACE = "\u2581"
# pieces of single bytes, side by side
_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+")
# Appended to a serialised model, it sets `normalizer_spec.add_dummy_prefix` (field 3.3) to false: if a protocol buffer
# holds a field twice, the last one counts.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# LLaMA's own vocabulary, recognised by its size and two pieces, must give these ids.
_LLAMA_PIECES = 32000
_LLAMA_IDS = {"\u2581Hello": 15043, "\u2581world": 3186}


class LegacyLlamaTokenizer:
    """Token ids of the slow LLaMA tokenizer of transformers 4.33.1.

    Args:
        model_file: a sentencepiece `tokenizer.model`. The JSON files next to it decide the `TokenizerRules`.

    Raises:
        InputError: the file is missing or not a LLaMA model, or a file next to it needs ids that are not supported.
    """

    def __init__(self, model_file: Path) -> None:
        self.model_file = model_file
        self._bytes = _read_model(model_file)
        self.rules: TokenizerRules = read_rules(model_file.parent)
        self._sp = _processor(self._bytes, model_file)
        self._encoder = self._sp if self.rules.legacy else _processor(self._bytes + _NO_DUMMY_PREFIX, model_file)
        self._special_ids = {token: self._sp.piece_to_id(token) for token in SPECIAL_TOKENS.values()}
        self._check_special_ids()
        self.bos_token_id: int = self._sp.bos_id()
        self.eos_token_id: int = self._sp.eos_id()
        self.unk_token_id: int = self._sp.unk_id()
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, self._special_ids)) + ")")
        self._check_llama()

    def __len__(self) -> int:
        return int(self._sp.get_piece_size())

    def encode(self, text: str, *, add_bos: bool = True) -> list[int]:
        """Token ids of `text`; special tokens in the text become their own ids.

        Raises:
            SampleError: `text` holds half a surrogate pair, which is not a character.
        """
        ids = [self.bos_token_id] if add_bos else []
        for piece in self._pieces(text):
            if piece in self._special_ids:
                ids.append(self._special_ids[piece])
            elif piece:
                ids.extend(self._encode_piece(piece))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""
        special = set(self._special_ids.values())
        return str(self._sp.decode([token for token in ids if token not in special]))

    def shown(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included as their names."""
        text = "".join(self.piece(token) for token in ids).replace(_SPACE, " ")
        return _BYTES.sub(lambda run: bytes.fromhex(re.sub("<0x|>", "", run[0])).decode(errors="replace"), text)

    def piece(self, token_id: int) -> str:
        """The piece of one id, as sentencepiece writes it (U+2581 for a space)."""
        return str(self._sp.id_to_piece(token_id))

    @property
    def fingerprint(self) -> str:
        """sha256 of the model file and the splitting rule, preceded by the name of unusual rules."""
        digest = hashlib.sha256(b"legacy-llama-slow:1:" + self._bytes).hexdigest()
        return " ".join(filter(None, (self.rules.name, digest)))

    def probe_ids(self) -> dict[str, list[int]]:
        """Text -> ids of `PROBE_TEXTS`, JSON-able, to be stored with data that depends on this tokenizer."""
        return {text: self.encode(text) for text in PROBE_TEXTS}

    def check_probe(self, stored: Mapping[str, Sequence[int]], where: str) -> None:
        """Encode the texts of a stored probe again and compare.

        Args:
            stored: the result of `probe_ids`, possibly of another version.
            where: name of the file or store that holds it.

        Raises:
            InputError: the ids of a text differ.
        """
        for text, ids in stored.items():
            if (found := self.encode(text)) != list(ids):
                raise InputError(
                    f"{self.model_file}: {text!r} becomes {_shortened(found, ids)}, but {_shortened(ids, found)} in "
                    f"{where}; use the tokenizer that {where} was made with"
                )

    def _pieces(self, text: str) -> list[str]:
        """The text split at special tokens, without the white space that they strip."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise SampleError(
                f"the text holds {text[error.start]!r}, half of a surrogate pair; write the complete character"
            ) from error
        if text and not self.rules.legacy:
            text = _SPACE + text.replace(_SPACE, " ")
        pieces: list[str] = self._special_pattern.split(text)
        for number in range(1, len(pieces), 2):
            if pieces[number] in self.rules.strip_left:
                pieces[number - 1] = pieces[number - 1].rstrip()
            if pieces[number] in self.rules.strip_right:
                pieces[number + 1] = pieces[number + 1].lstrip()
        if not self.rules.legacy and len(pieces) > 1 and pieces[0] == _SPACE:
            pieces[0] = ""  # the prefix belongs to text, but this starts with a special token
        return pieces

    def _encode_piece(self, piece: str) -> list[int]:
        ids: list[int] = self._encoder.encode(piece)
        if self.rules.legacy or not piece.startswith((_SPACE, " ")):
            return ids
        # Without a dummy prefix sentencepiece drops a leading space; after other text it keeps it.
        guard = SPECIAL_TOKENS["unk_token"]
        return list(self._encoder.encode(guard + piece)[len(self._encoder.encode(guard)) :])

    def _check_special_ids(self) -> None:
        expected = {"<unk>": self._sp.unk_id(), "<s>": self._sp.bos_id(), "</s>": self._sp.eos_id()}
        for token, token_id in expected.items():
            if token_id < 0 or self._special_ids[token] != token_id:
                raise InputError(
                    f"{self.model_file}: {token} has id {token_id} (-1: none) as a control token and "
                    f"{self._special_ids[token]} as a piece; LLaMA's model has it once, copy tokenizer.model again"
                )

    def _check_llama(self) -> None:
        if len(self) != _LLAMA_PIECES or any(self.piece(number) != text for text, number in _LLAMA_IDS.items()):
            return
        if (found := self.encode("Hello world")) != (wanted := [1, *_LLAMA_IDS.values()]):
            raise InputError(
                f"{self.model_file}: has LLaMA's pieces but makes 'Hello world' {found}, LLaMA {wanted}; "
                "copy tokenizer.model again"
            )


def _read_model(file: Path) -> bytes:
    if file.is_file():
        try:
            return file.read_bytes()
        except OSError as error:
            raise unreadable(file, error) from error
    if (file.parent / "tokenizer.json").is_file():
        raise InputError(
            f"{file}: no such file, only tokenizer.json, whose fast tokenizer gives other ids than the teacher was "
            "trained on; add the tokenizer.model of the same checkpoint"
        )
    raise InputError(f"{file}: no such file; a checkpoint needs its sentencepiece tokenizer.model")


def _processor(model: bytes, file: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise InputError(f"{file}: not a sentencepiece model; copy tokenizer.model again") from error


def _shortened(ids: Sequence[int], other: Sequence[int]) -> str:
    """Up to eight ids, starting just before the first difference from `other`."""
    same = next((n for n, pair in enumerate(zip(ids, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, min(same, len(ids)) - 2)
    shown = ", ".join(map(str, ids[start : start + 8]))
    return f"[{'... ' if start else ''}{shown}{' ...' if start + 8 < len(ids) else ''}] ({len(ids)} ids)"
