"""What decides a sample's tokens and pixels, as short texts that a store keeps."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from alignkd.vlm.errors import InputError
from alignkd.vlm.families.huggingface.inputs.processor import LoadedProcessor
from alignkd.vlm.families.huggingface.inputs.text.chat import ChatTemplate

# Raise it when ids or labels of a rendered conversation change.
LABELS_VERSION = 1
# In descriptions of processors: who made them, not what they do.
_NOT_SETTINGS = (
    "auto_map", "processor_class", "image_processor_type", "feature_extractor_type", "image_processor_class",
    "transformers_version", "name_or_path", "_name_or_path", "_processor_class",
)  # fmt: skip
_OTHER_PARTS = (
    "tokenizer",
    "image_processor",
    "video_processor",
    "feature_extractor",
    "chat_template",
    "audio_tokenizer",
)
# Settings of a tokenizer's file that the processors never use.
_UNUSED_RULES = ("padding", "truncation", "version")


def tokenizer_fingerprint(loaded: LoadedProcessor) -> str:
    """sha256 of the tokenizer as it was loaded and of the token at the beginning of a text."""
    rules = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    return _sha256([_without(rules, _UNUSED_RULES), loaded.tokenizer.bos_token])


def template_fingerprint(template: ChatTemplate, stop: str) -> str:
    """sha256 of the chat template, of the rule for labels, and of the token `stop` that ends an answer."""
    return f"chat:{LABELS_VERSION}:{_sha256([template.source, stop])}"


def image_processor_fingerprint(loaded: LoadedProcessor) -> str:
    """Class and settings of the image processor. Variants with equal settings give other pixels."""
    found = loaded.processor.image_processor
    return f"{type(found).__name__} {_sha256(_without(found.to_dict(), _NOT_SETTINGS))}"


def vision_tokens_fingerprint(loaded: LoadedProcessor, tokens: Mapping[tuple[int, int], int]) -> str:
    """Class and further settings of the processor, and the number of tokens of images of some sizes."""
    found = loaded.processor
    settings = _without(found.to_dict(), (*_NOT_SETTINGS, *_OTHER_PARTS))
    counts = ", ".join(f"{width} x {height}: {count}" for (width, height), count in tokens.items())
    return f"{type(found).__name__} {_sha256([settings, loaded.image_token_id])[:16]} ({counts} tokens)"


def check_probe(found: Mapping[str, list[int]], stored: Mapping[str, list[int]], who: str, where: str) -> None:
    """Compare ids of texts with those of a store.

    Raises:
        InputError: the ids of a text differ.
    """
    for text, ids in stored.items():
        if found[text] != list(ids):
            raise InputError(
                f"{who}: {text!r} becomes {_shortened(found[text])}, but {_shortened(ids)} in {where}; take a "
                f"model of the same family, with the processor files and the version of transformers that {where} was "
                "made with"
            )


def _shortened(ids: list[int]) -> str:
    shown = ", ".join(map(str, ids[:12]))
    return f"[{shown}{' ...' if len(ids) > 12 else ''}] ({len(ids)} ids)"


def _without(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in names}


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
