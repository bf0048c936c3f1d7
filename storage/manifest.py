"""What a store promises: the settings that decide its bytes and the fingerprint of who made them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from storage.errors import StoreError
from storage.sealed_json import canonical, unseal

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"
# what may differ between two runs that write the same bytes
VOLATILE = {"created_with"}

FloatCodec = Literal["float32", "float16", "none"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shapes(_Model):
    """Sizes of the teacher that give the arrays their shape."""

    num_heads: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    vision_tokens: int = Field(ge=1, le=65536, description="P; 144 for MobileVLM V2")
    vocab_size: int = Field(ge=1)
    vision_top_tokens: int = Field(default=16, ge=1, description="tokens of the focus loss (eq. 3)")


class LogitsCodec(_Model):
    """How the logits at supervised positions are kept."""

    kind: Literal["full", "topk", "none"] = "topk"
    top_k: int | None = Field(default=None, ge=1, description="entries per position, the label may add one")
    dtype: Literal["float32", "float16"] = "float16"

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if (self.kind == "topk") != (self.top_k is not None):
            raise ValueError(f"logits kind {self.kind} with top_k {self.top_k}: top_k belongs to kind topk")
        return self


class Codecs(_Model):
    """How each target is stored; `none` = not stored."""

    attention: FloatCodec = "float16"
    attention_pairs: Literal["tqv", "tqt", "vqv"] = "tqv"
    vision_top: FloatCodec = "float16"
    vision_all: FloatCodec = "float16"
    logits: LogitsCodec


class Manifest(_Model):
    """Written once when a store is made; every commit carries its hash.

    Attributes:
        fingerprint: all that decided the teacher's outputs: weights, tokenizer, template, ...
        data_fingerprint: what the samples were: hash of the conversations file, number of samples, ...
        created_with: versions for the record; the only part that may differ on re-opening.
    """

    schema_version: Literal[1] = 1
    fingerprint: dict[str, str]
    data_fingerprint: dict[str, str]
    shapes: Shapes
    codecs: Codecs
    backend: Literal["zarr"] = "zarr"
    num_samples: int = Field(ge=1)
    shard_size: int = Field(ge=1)
    seed: int = Field(ge=0, lt=2**64)
    created_with: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_relations(self) -> Self:
        if self.codecs.vision_top != "none" and self.shapes.vision_top_tokens > self.shapes.vision_tokens:
            raise ValueError(
                f"shapes.vision_top_tokens is {self.shapes.vision_top_tokens}, above shapes.vision_tokens "
                f"{self.shapes.vision_tokens}: lower it or set codecs.vision_top to none"
            )
        return self

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.shard_size)

    def planned_size(self, shard: int) -> int:
        """Samples that the plan gives to a shard; 0 outside the plan."""
        return max(0, min(self.shard_size, self.num_samples - shard * self.shard_size))

    def manifest_hash(self) -> str:
        """sha256 (hex) of everything that decides the store's bytes."""
        return hashlib.sha256(canonical(self.model_dump(exclude=VOLATILE))).hexdigest()


class HasManifest(Protocol):
    """A store opened for reading or writing."""

    path: Path
    manifest: Manifest


def load_manifest(store: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        StoreError: there is none, it is damaged, or another version of the software wrote it.
    """
    path = store / FILE_NAME
    document = unseal(path)
    if (version := document.get("schema_version")) != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema_version is {version}, this alignkd reads {SCHEMA_VERSION}; use a matching alignkd"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"{path}: {where}: {first['msg']}; use the alignkd that wrote the store") from None


def check_same_manifest(path: Path, found: Manifest, asked: Manifest) -> None:
    """Refuse to go on with a store that was made with other settings.

    Raises:
        StoreError: one line naming each differing field with both values.
    """
    stored = _flatten(found.model_dump(exclude=VOLATILE))
    wanted = _flatten(asked.model_dump(exclude=VOLATILE))
    differing = [
        f"{name} is {stored.get(name, 'absent')} in the store, {wanted.get(name, 'absent')} asked for"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name, _ABSENT) != wanted.get(name, _ABSENT)
    ]
    if differing:
        raise StoreError(
            f"store {path} was made with other settings: {'; '.join(differing)}; "
            "choose another path or delete the store"
        )


def check_fingerprint(store: HasManifest, expected: Mapping[str, str]) -> None:
    """Refuse a store whose teacher saw other inputs than this student will.

    Args:
        store: an opened store.
        expected: name -> value for the parts that must agree, e.g. tokenizer, template, image_processor.

    Raises:
        StoreError: one line naming each differing part with both values.
    """
    found = store.manifest.fingerprint
    differing = [
        f"{name} is {found.get(name, 'not recorded')} in the store, {value} in the student"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if differing:
        raise StoreError(
            f"store {store.path} does not fit this student: {'; '.join(differing)}; "
            "dump the targets again with the student's settings"
        )


_ABSENT = object()


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in document.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
