"""How the small JSON files next to `tokenizer.model` change token ids, as transformers 4.33.1 reads them.

MobileVLM was trained with that version's slow `LlamaTokenizer`. Three settings that change ids are supported; all
others are refused. docs/inputs.md has the table.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkd.disk.opening import read_regular
from alignkd.vlm.errors import InputError, one_line, unreadable

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
CONFIG_FILE, MAP_FILE, ADDED_FILE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"

# Settings that change ids, with the value of MobileVLM, which is also the default.
_FIXED = {"add_bos_token": True, "add_eos_token": False, "split_special_tokens": False}
_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")


@dataclass(frozen=True, kw_only=True)
class TokenizerRules:
    """How text around special tokens is encoded.

    Attributes:
        legacy: every piece of text between special tokens gets its own dummy prefix; otherwise only the first does.
        strip_left, strip_right: special tokens that strip the white space before or after them.
    """

    legacy: bool = True
    strip_left: frozenset[str] = field(default=frozenset())
    strip_right: frozenset[str] = field(default=frozenset())

    @property
    def name(self) -> str:
        """Names the differences from the usual rules; empty without any. Part of the tokenizer's fingerprint."""
        parts = [] if self.legacy else ["legacy=false"]
        for side, tokens in (("lstrip", self.strip_left), ("rstrip", self.strip_right)):
            parts += [f"{side}={','.join(sorted(tokens))}"] if tokens else []
        return " ".join(parts)


def read_rules(folder: Path) -> TokenizerRules:
    """The rules of a checkpoint folder; its JSON files may be missing.

    Raises:
        InputError: a setting or an added token that would give other ids than in MobileVLM's training.
    """
    config = _read_object(folder / CONFIG_FILE)
    _check_settings(folder / CONFIG_FILE, config)
    _check_added(folder / CONFIG_FILE, _contents(config.get("added_tokens_decoder")))
    _check_added(folder / ADDED_FILE, tuple(_read_object(folder / ADDED_FILE)))
    strip = dict.fromkeys(SPECIAL_TOKENS.values(), (False, False))
    # A bare string means a token that keeps white space in the config, but strips it in the map.
    for file, tokens, bare in ((CONFIG_FILE, config, False), (MAP_FILE, _read_object(folder / MAP_FILE), True)):
        strip.update(_strips(folder / file, tokens, bare=bare))
    return TokenizerRules(
        legacy=config.get("legacy") is None or bool(config["legacy"]),
        strip_left=frozenset(token for token, (left, _) in strip.items() if left),
        strip_right=frozenset(token for token, (_, right) in strip.items() if right),
    )


def _check_settings(file: Path, config: Mapping[str, Any]) -> None:
    for key, wanted in _FIXED.items():
        if bool(found := config.get(key, wanted)) is not wanted:
            raise InputError(
                f"{file}: {key} is {found!r}, MobileVLM was trained with {wanted}; use the checkpoint's own tokenizer"
            )
    if (found := config.get("tokenizer_class")) not in (None, *_CLASSES):
        raise InputError(f"{file}: tokenizer_class is {found!r}, only {_CLASSES[0]} is supported")
    if found := config.get("sp_model_kwargs"):
        raise InputError(f"{file}: sp_model_kwargs is {found!r}, MobileVLM was trained with none; remove them")


def _strips(file: Path, tokens: Mapping[str, Any], *, bare: bool) -> dict[str, tuple[bool, bool]]:
    """Whether each special token in the file strips white space (before, after)."""
    strips = {}
    for key, wanted in SPECIAL_TOKENS.items():
        value = tokens.get(key, wanted)
        if _content(value) != wanted:
            raise InputError(
                f"{file}: {key} is {_content(value)!r}, expected {wanted!r}; LLaMA's prompts are made of it"
            )
        if isinstance(value, dict):
            strips[wanted] = bool(value.get("lstrip")), bool(value.get("rstrip"))
        elif key in tokens:
            strips[wanted] = bare, bare
    # Padding never appears in a prompt, because the original replaces it by <unk>. A token outside the model is new.
    others = [tokens.get(key) for key in ("pad_token", "sep_token", "cls_token", "mask_token")]
    _check_added(file, tuple(_content(value) for value in others if value))
    _check_added(file, _contents(tokens.get("additional_special_tokens")))
    return strips


def _check_added(file: Path, tokens: tuple[str, ...]) -> None:
    if added := [token for token in tokens if token not in SPECIAL_TOKENS.values()]:
        raise InputError(
            f"{file}: adds {', '.join(map(repr, added[:5]))}{' ...' if len(added) > 5 else ''} to the vocabulary, "
            "but only <unk>, <s> and </s> are supported; use the checkpoint's own tokenizer"
        )


def _contents(values: Any) -> tuple[str, ...]:
    entries = list(values.values()) if isinstance(values, dict) else values
    return tuple(_content(value) for value in entries) if isinstance(entries, list) else ()


def _content(value: Any) -> str:
    """The text of a token, given as a string or as an object."""
    return str(value.get("content") if isinstance(value, dict) else value)


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`, {} when there is no such file."""
    if not file.exists():
        return {}
    try:
        value = json.loads(read_regular(file))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({one_line(error)}); copy the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{file}: a JSON {type(value).__name__}, expected an object; copy the file again")
    return value
