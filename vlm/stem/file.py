"""A stem as one safetensors file: tensors by their checkpoint names; the metadata identifies the teacher."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from alignkd.disk.next_step import tried
from alignkd.vlm.errors import InputError, one_line, unreadable
from alignkd.vlm.families.family import ModelConfig, VisionLanguageModel
from alignkd.vlm.families.stem import EmbeddingTable, Stem, StemDesign, StemSizes
from alignkd.vlm.hardware.devices import TORCH_DTYPES
from alignkd.vlm.stem.designs import design_from
from alignkd.vlm.stem.teacher_head import LM_HEAD_KEY
from alignkd.vlm.weights.tensor_file import open_tensors, save_tensors

METADATA_KEY = "alignkd_stem"
# its name in a store
STEM_FILE = "stem.safetensors"
# dtypes as safetensors names them
_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


class _Described(BaseModel):
    """The metadata, checked by pydantic because files may come from untrusted sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["alignkd stem"] = "alignkd stem"
    version: Literal[1] = 1
    dtype: Literal["float32", "bfloat16", "float16"]
    fingerprint: dict[str, str]
    tower: dict[str, str]
    config: dict[str, Any]
    # of MobileVLM teachers, whose files name no family
    vision: dict[str, Any] | None = None
    family: Literal["huggingface"] | None = None
    # absent: the smallest (`alignkd.vlm.families.stem`)
    depth: int | None = Field(default=None, ge=1)


@dataclass(frozen=True, kw_only=True)
class StemInfo:
    """Description of a stem file.

    Attributes:
        path: path of the file.
        dtype: dtype of the tensors.
        fingerprint: fingerprint of the teacher: entries that a store's manifest also has (`alignkd.vlm.stem.checks`).
        tower: dtype -> hash of the vision tower's weights (`StemDesign.tower_hashes`).
        design: what the file consists of, and how its stem is built.
        has_lm_head: whether the file has `lm_head` and the final norm.
        file_bytes: size of the file.
    """

    path: Path
    dtype: str
    fingerprint: Mapping[str, str]
    tower: Mapping[str, str]
    design: StemDesign
    has_lm_head: bool
    file_bytes: int

    @property
    def config(self) -> ModelConfig:
        """Sizes of the teacher."""
        return self.design.config

    @property
    def depth(self) -> int:
        """Number of the teacher's decoder layers, from 0, whose attention the stem gives."""
        return self.design.depth

    @property
    def sizes(self) -> StemSizes:
        """Bytes on the device and on the host."""
        return self.design.sizes(TORCH_DTYPES[self.dtype], lm_head=self.has_lm_head)


@dataclass(frozen=True, kw_only=True)
class StemParts:
    """Content of a stem file.

    Attributes:
        weights: tensors of one dtype, named as in `StemDesign.shapes`.
        fingerprint, tower, design: as in `StemInfo`.
    """

    weights: Mapping[str, Tensor]
    fingerprint: Mapping[str, str]
    tower: Mapping[str, str]
    design: StemDesign

    def metadata(self) -> dict[str, str]:
        """One entry, because safetensors writes several in random order and equal stems must have equal bytes."""
        (dtype,) = {_name(tensor) for tensor in self.weights.values()}
        described = _Described(
            format="alignkd stem",
            version=1,
            dtype=dtype,
            fingerprint=dict(self.fingerprint),
            tower=dict(self.tower),
            **self.design.described(),
        )
        return {METADATA_KEY: described.model_dump_json(exclude_unset=True)}


def stem_bytes(parts: StemParts) -> bytes:
    """The content of a stem file."""
    content: bytes = save(dict(parts.weights), metadata=parts.metadata())
    return content


def stem_file_bytes(parts: StemParts) -> int:
    """Size of the file, from shapes alone: the tensors of `parts` may be on the meta device.

    Format (https://huggingface.co/docs/safetensors): 8 bytes of length, a JSON header padded with spaces to a multiple
    of 8, the tensors back to back.
    """
    entries: dict[str, Any] = {"__metadata__": parts.metadata()}
    end = 0
    for key, tensor in sorted(parts.weights.items()):
        start, end = end, end + tensor.nbytes
        entries[key] = {"dtype": _CODES[_name(tensor)], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-header // 8) * 8 + end


def write_stem(path: Path, parts: StemParts) -> StemInfo:
    """Write a stem whole or not at all; missing folders are created.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        save_tensors(parts.weights, path, metadata=parts.metadata())
    except OSError as error:
        raise unreadable(path, error, "cannot be written") from error
    return read_stem_info(path)


def read_stem_info(path: Path) -> StemInfo:
    """Describe a stem file; no tensor is read.

    Raises:
        InputError: not a stem file, damaged, or of another version.
    """
    try:
        with open_tensors(path) as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            found = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
            shapes = {key: tuple(part.get_shape()) for key, part in found.items()}
            dtypes = {part.get_dtype() for part in found.values()}
    except OSError as error:
        raise unreadable(path, error, "cannot be read as a stem") from error
    except SafetensorError as error:
        raise InputError(
            f"{tried(path)}: cannot be read as a stem ({one_line(error)[:160]}); `alignkd stem extract` writes one"
        ) from error
    if text is None:
        raise InputError(f"{path}: safetensors without the metadata of a stem; `alignkd stem extract` writes a stem")
    described = _described(text, path)
    design, lm_head = _design(described, path), LM_HEAD_KEY in shapes
    _check_tensors(path, shapes, dtypes, design.shapes(lm_head=lm_head), described.dtype)
    return StemInfo(
        path=path,
        dtype=described.dtype,
        fingerprint=described.fingerprint,
        tower=described.tower,
        design=design,
        has_lm_head=lm_head,
        file_bytes=path.stat().st_size,
    )


def is_stem(path: Path) -> bool:
    """Whether `path` is a stem file of any version."""
    try:
        with open_tensors(path) as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def open_stem(
    path: Path, *, lm_head: bool = True, student: VisionLanguageModel | None = None, depth: int | None = None
) -> Stem:
    """The stem of a file on the CPU; the token embeddings stay mapped from the file, the rest is read.

    Args:
        student: as for `StemDesign.build`.
        lm_head: False leaves `lm_head` and the final norm in the file.
        depth: depth of the stem, at most that of the file: deeper layers stay in the file; None: that of the file.

    Raises:
        InputError: as `read_stem_info`.
    """
    info = read_stem_info(path)
    assert depth is None or depth <= info.depth, (depth, info.depth)
    design = info.design if depth is None else info.design.cut(depth)
    wanted = design.shapes(lm_head=lm_head and info.has_lm_head)
    with open_tensors(path) as file:
        mapped = {key: file.get_tensor(key) for key in wanted}
    # copy all but the table, so that a file that is replaced later does not change the targets
    return design.build({k: t if k == design.table_name else t.clone() for k, t in mapped.items()}, student)


def open_table(info: StemInfo) -> EmbeddingTable:
    """Only the token embeddings of a stem, mapped from its file."""
    with open_tensors(info.path) as file:
        return EmbeddingTable(file.get_tensor(info.design.table_name))


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _described(text: str, path: Path) -> _Described:
    try:
        return _Described.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = one_line(".".join(map(str, first["loc"])))[:80]
        raise InputError(
            f"{path}: metadata of another version or damaged ({where}: {one_line(first['msg'])[:120]}); extract the "
            "stem again"
        ) from None


def _design(described: _Described, path: Path) -> StemDesign:
    try:
        design = design_from(described.model_dump(include={"config", "vision", "family", "depth"}, exclude_unset=True))
        design.shapes(lm_head=True)
    except Exception as error:  # a library over damaged values fails in any way
        raise InputError(
            f"{path}: config in the metadata is unusable ({one_line(error)[:160]}); extract the stem again"
        ) from error
    return design


def _check_tensors(
    path: Path,
    found: Mapping[str, tuple[int, ...]],
    dtypes: set[str],
    expected: Mapping[str, tuple[int, ...]],
    dtype: str,
) -> None:
    differing = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    if differing:
        key = differing[0]
        raise InputError(
            f"{path}: tensor {key[:80]} has shape {found.get(key, 'none')}, expected "
            f"{expected.get(key, 'none')}; extract the stem again"
        )
    code = _CODES[dtype]
    if dtypes != {code}:
        raise InputError(
            f"{path}: tensors are {', '.join(sorted(dtypes))}, {code} in its metadata; extract the stem again"
        )
