"""Find a checkpoint: a local folder, or a model of the Hugging Face hub, `org/name` or `org/name@revision`.

The hub's own rules apply: files in its cache (`HF_HOME`) are reused, and `HF_HUB_OFFLINE=1` disables the network. Only
needed files are fetched, and weights in one format only: safetensors if the model has them.
"""

import re
from pathlib import Path

from alignkd.disk.next_step import tried
from alignkd.vlm.errors import InputError, one_line
from alignkd.vlm.weights.files import weight_files

CONFIG_FILES = ("config.json", "generation_config.json", "preprocessor_config.json")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Further files of tokenizers and processors of transformers.
PROCESSOR_FILES = (
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
)
# In the order of `alignkd.vlm.weights.files.FORMATS`.
WEIGHT_PATTERNS = (
    ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"),
)
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def resolve_checkpoint(checkpoint: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint; a hub id is fetched, or taken from the hub's cache.

    Args:
        checkpoint: local folder, or hub id with an optional `@revision` (branch, tag or commit).
        weights: False fetches only configuration, tokenizer and processor, into the same folder.

    Raises:
        InputError: neither a folder nor a model of the hub, or incomplete in the cache while the hub is unreachable.
    """
    if (folder := Path(checkpoint)).is_dir():
        inner = sorted(found.parent for found in folder.glob("*/config.json"))
        if inner and not (folder / "config.json").exists():
            raise InputError(f"{folder}: has no config.json, but {inner[0]} has; give that folder")
        return folder
    match = _HUB_ID.fullmatch(str(checkpoint))
    if Path(checkpoint).exists() or match is None or match["name"].startswith("."):
        raise InputError(f"{tried(checkpoint)}: no such checkpoint folder; check the path")
    required = [*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES]
    if not weights:
        return _fetch(match["name"], match["revision"], required)
    return _fetch_with_weights(match["name"], match["revision"], required)


def cached_checkpoint(checkpoint: str | Path) -> Path | None:
    """The folder of a checkpoint whose weights are on this machine, else None; nothing is fetched."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        match = _HUB_ID.fullmatch(str(checkpoint))
        if match is None:
            return None
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(match["name"], revision=match["revision"], local_files_only=True))
        except Exception:  # the cache raises many unrelated classes if the model is missing
            return None
    return folder if _has_weights(folder) else None


def resolve_tower(checkpoint: Path, name: str) -> Path | None:
    """The folder with a vision tower's own weights (inside `checkpoint`, local, or from the hub), or None."""
    for folder in (checkpoint / name, Path(name)):
        if folder.is_dir():
            return folder if _has_weights(folder) else None
    match = _HUB_ID.fullmatch(name)
    if match is None:
        return None
    try:
        return _fetch_with_weights(match["name"], match["revision"], ["config.json"])
    except InputError:
        return None


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except InputError:
        return False


def _fetch_with_weights(name: str, revision: str | None, required: list[str]) -> Path:
    """The snapshot with weights in its first format; offline, in the first format that is complete in the cache."""
    problem: InputError | None = None
    for patterns in WEIGHT_PATTERNS:
        try:
            folder = _fetch(name, revision, [*required, *patterns])
        except InputError as error:
            problem = error
            continue
        try:
            weight_files(folder)
        except InputError as error:
            problem = InputError(f"{error}: `hf download {_spelled(name, revision)}`")
        else:
            return folder
    assert problem is not None
    raise problem


def _fetch(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # network, hub and cache raise many unrelated classes
        raise InputError(f"{_spelled(name, revision)}: {_reason(error, name, revision)}") from error
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{_spelled(name, revision)}: no config.json in the hub's cache {folder}; "
            "finish the download on a machine that reaches the hub"
        )
    return folder


def _reason(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the model is gated on the hub; ask for access on its page, then `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            "neither a local folder nor a model on the hub; check the name, or `hf auth login` if it is private "
            f"(tried {Path(name).absolute()})"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of this model; choose one from its page"
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "neither a local folder nor complete in the hub's cache, and the hub is unreachable "
            "(or HF_HUB_OFFLINE is set); fetch it once with a connection, or give a local folder "
            f"(tried {Path(name).absolute()})"
        )
    return (
        f"not fetched from the hub ({type(error).__name__}: {one_line(error)[:120]}); "
        "try again, or download the checkpoint and give its folder"
    )


def _spelled(name: str, revision: str | None) -> str:
    return name if revision is None else f"{name}@{revision}"
