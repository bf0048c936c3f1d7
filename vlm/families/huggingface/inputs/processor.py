"""Loads what a checkpoint's folder says of its inputs: tokenizer, image processor, chat template, ids with a meaning.

Nothing is fetched, and no code of the checkpoint is run.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
from transformers.utils import logging

from alignkd.disk.opening import read_regular
from alignkd.vlm.errors import InputError, one_line, unreadable
from alignkd.vlm.settings import ProcessorKind

INSTALL = "pip install 'alignkd[families]'"
# End of turn of ChatML, SmolVLM, Gemma 3 and Gemma 4, which not every generation_config.json lists.
_END_OF_TURN = ("<|im_end|>", "<end_of_utterance>", "<end_of_turn>", "<turn|>")
# Any of each: transformers does not name the file that it looked for.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json", "spiece.model")
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LOCAL = {"local_files_only": True, "trust_remote_code": False}

# Remarks of transformers on single images and texts (ambiguous channels, long texts); none of them is an error.
logging.set_verbosity_error()


@dataclass(frozen=True, kw_only=True)
class LoadedProcessor:
    """A checkpoint's processor and the ids that have a meaning.

    Attributes:
        processor: the `ProcessorMixin` of transformers; has a fast tokenizer, an image processor and a chat template.
        image_token_id: the id at every vision position, as the model's configuration has it.
        stop_ids: ids that end an answer.
    """

    folder: Path
    processor: Any
    image_token_id: int
    stop_ids: frozenset[int]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of transformers."""
        return self.processor.tokenizer

    def count_vision_tokens(self, text: str) -> int:
        """Vision tokens in the text of an image's tokens."""
        return text.count(self.tokenizer.convert_ids_to_tokens(self.image_token_id))


def load_processor(folder: Path, choice: ProcessorKind = "auto") -> LoadedProcessor:
    """The processor of a checkpoint's folder.

    Args:
        choice: `auto`, the one that transformers picks where torchvision is installed; `pil`, the variant of its image
            processor that needs no torchvision and whose pixels differ a little.

    Raises:
        InputError: a package is missing, a file is unusable, or the processor is of another kind.
    """
    processor = _checked(_load(folder, choice), folder)
    return LoadedProcessor(
        folder=folder,
        processor=processor,
        image_token_id=_image_token_id(folder),
        stop_ids=_stop_ids(folder, processor.tokenizer),
    )


def _load(folder: Path, choice: ProcessorKind) -> Any:
    if choice == "auto" and not _has_torchvision():
        raise InputError(
            f"{folder}: its image processor needs torchvision, which is not installed; {INSTALL}, or set processor: "
            "pil for the variant without it"
        )
    try:
        processor = AutoProcessor.from_pretrained(folder, **_LOCAL)
    except Exception as error:  # each class of processor has its own ways to refuse a file
        raise _unloadable(folder, "processor", error) from error
    if choice == "pil" and hasattr(processor, "image_processor"):
        try:
            processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil", **_LOCAL)
        except Exception as error:
            raise _unloadable(folder, "image processor for processor: pil", error) from error
        if getattr(processor.image_processor, "backend", None) != "pil":
            raise InputError(
                f"{folder}: {type(processor).__name__} has no variant for Pillow; leave processor: pil out"
            )
    return processor


def _unloadable(folder: Path, what: str, error: Exception) -> InputError:
    for names in (_TOKENIZER_FILES, _PROCESSOR_FILES):
        if not any((folder / name).exists() for name in names):
            return InputError(f"{folder}: has none of {', '.join(names)}; copy that file of the checkpoint too")
    for name in (*_JSON_FILES, *_PROCESSOR_FILES, "chat_template.json"):
        if (file := folder / name).exists():
            try:
                _read_object(file)
            except InputError as unusable:
                return unusable
    if "torchvision" in str(error).lower() and not _has_torchvision():
        return InputError(f"{folder}: its {what} needs torchvision, whatever processor: says; {INSTALL}")
    if isinstance(error, ImportError):
        return InputError(f"{folder}: its {what} needs a package that is missing ({_first(error)}); {INSTALL}")
    return InputError(
        f"{folder}: its {what} cannot be loaded ({_first(error)}); copy the tokenizer and processor files of the "
        "checkpoint again"
    )


def _has_torchvision() -> bool:
    return importlib.util.find_spec("torchvision") is not None


def _checked(processor: Any, folder: Path) -> Any:
    name = type(processor).__name__
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or getattr(processor, "image_processor", None) is None:
        raise InputError(
            f"{folder}: its files describe a {name}, expected a processor of text and images; copy "
            "preprocessor_config.json or processor_config.json of the checkpoint too"
        )
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise InputError(
            f"{folder}: {type(tokenizer).__name__} does not say which token stands for which text; add the "
            "checkpoint's tokenizer.json"
        )
    if not set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):  # transformers makes up an empty one
        raise InputError(
            f"{folder}: has no tokenizer ({type(tokenizer).__name__} without entries); copy tokenizer.json and "
            "tokenizer_config.json of the checkpoint too"
        )
    if not processor.chat_template:
        raise InputError(
            f"{folder}: {name} has no chat template, so it is unknown how a conversation is written; use an "
            "instruction checkpoint, or add its chat_template.jinja"
        )
    if isinstance(processor.chat_template, dict) and "default" not in processor.chat_template:
        raise InputError(
            f"{folder}: has chat templates {', '.join(processor.chat_template)} but none named 'default'; keep one"
        )
    if getattr(processor, "image_token", None) is None:
        raise InputError(f"{folder}: {name} does not say which text stands for an image; this model is not supported")
    return processor


def _image_token_id(folder: Path) -> int:
    try:
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
    except Exception as error:
        raise InputError(f"{folder / 'config.json'}: cannot be loaded ({_first(error)}); copy it again") from error
    found = getattr(config, "image_token_id", None)
    if not isinstance(found, int):
        raise InputError(
            f"{folder / 'config.json'}: {config.model_type} has no image_token_id, so its images are not tokens among "
            "the text; this model is not supported"
        )
    return found


def _stop_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Ids of generation_config.json, the tokenizer's own, and well-known ends of turns."""
    ids = {tokenizer.eos_token_id}
    file = folder / "generation_config.json"
    if file.exists():
        listed = _read_object(file).get("eos_token_id")
        ids |= set(listed) if isinstance(listed, list) else {listed}
    vocabulary = tokenizer.get_vocab()
    ids |= {vocabulary[text] for text in _END_OF_TURN if text in vocabulary}
    return frozenset(token for token in ids if isinstance(token, int))


def _read_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_regular(file))
    except OSError as error:
        raise unreadable(file, error) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({one_line(error)}); copy it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{file}: a JSON {type(found).__name__}, expected an object; copy it again")
    return found


def _first(error: Exception) -> str:
    """The beginning of a message, for one line."""
    text = one_line(error) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
