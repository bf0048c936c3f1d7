"""What a manifest of schema 1 (alignkd 0.1) could say, and how its hash was spelled."""

from typing import Any

FLOAT_CODECS = ("float32", "float16", "none")
LOGITS_KINDS = ("full", "topk", "none")
# came with schema 2
NEW_FIELDS = ("inputs", "attachments")
LOGITS_FIELDS = ("kind", "top_k", "dtype")


def check_schema_1(given: dict[str, Any]) -> None:
    """Refuse what schema 1 did not know.

    Args:
        given: the fields of the manifest that were given.

    Raises:
        ValueError: one line with the field and its value.
    """
    codecs = given["codecs"]
    for name in ("attention", "vision_top", "vision_all"):
        if codecs.get(name, FLOAT_CODECS[0]) not in FLOAT_CODECS:
            raise ValueError(f"codecs.{name} is {codecs[name]}, schema 1 has {', '.join(FLOAT_CODECS)}")
    if codecs["logits"].get("kind", "topk") not in LOGITS_KINDS:
        raise ValueError(f"codecs.logits.kind is {codecs['logits']['kind']}, schema 1 has {', '.join(LOGITS_KINDS)}")
    if given.get("backend", "zarr") != "zarr":
        raise ValueError(f"backend is {given['backend']}, schema 1 has zarr")
    for name in NEW_FIELDS:
        if name in given:
            raise ValueError(f"{name} is given, schema 1 has no such setting")


def hashed_by_schema_1(document: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest's whole document that schema 1 hashed."""
    codecs = document["codecs"]
    logits = {name: codecs["logits"][name] for name in LOGITS_FIELDS}
    known = {name: value for name, value in document.items() if name not in NEW_FIELDS}
    return known | {"codecs": codecs | {"logits": logits}}
