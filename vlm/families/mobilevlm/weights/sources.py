"""From weight files to parameters: which file holds which parameter, and whether all are present with their shapes."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from alignkd.vlm.data.read_json import read_json
from alignkd.vlm.errors import InputError
from alignkd.vlm.weights.files import Shape, iter_weights, weight_files, weight_shapes
from alignkd.vlm.weights.hub import resolve_tower
from alignkd.vlm.weights.key_patterns import group_keys

logger = logging.getLogger(__name__)
# Buffers that older versions of transformers saved; they are derived from the config.
DERIVED_KEYS = ("rotary_emb.inv_freq", "embeddings.position_ids")
TOWER_PREFIX = "model.vision_tower.vision_tower."


@dataclass(frozen=True, kw_only=True)
class WeightSource:
    """One weight file, and the mapping from its names to parameter names.

    Attributes:
        file: safetensors or `.bin`.
        only: other names are ignored unless they start with this (a CLIP checkpoint also has a text model).
        prefix: prefix added to each name.
    """

    file: Path
    only: str = ""
    prefix: str = ""

    def shapes(self) -> Mapping[str, Shape]:
        """Parameter name -> shape; the file is read for it once."""
        return self._shapes

    @cached_property
    def _shapes(self) -> Mapping[str, Shape]:
        return {self.prefix + key: shape for key, shape in weight_shapes(self.file).items() if self._is_wanted(key)}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Parameter name and tensor, a view of the mapped file."""
        return ((self.prefix + key, tensor) for key, tensor in iter_weights(self.file) if self._is_wanted(key))

    def _is_wanted(self, key: str) -> bool:
        return key.startswith(self.only) and not key.endswith(DERIVED_KEYS)


def weight_sources(folder: Path) -> list[WeightSource]:
    """The checkpoint's weight files, and those of its vision tower if it contains none.

    Official MobileVLM V2 checkpoints contain their tower. First-generation ones do not; then the tower is read from
    `mm_vision_tower`, a local folder or a hub id, as in the original.

    Raises:
        InputError: no weights.
    """
    sources = [WeightSource(file=file) for file in weight_files(folder)]
    if any(key.startswith(TOWER_PREFIX) for source in sources for key in source.shapes()):
        return sources
    raw = read_json(folder / "config.json")
    tower = resolve_tower(folder, str(raw.get("mm_vision_tower"))) if isinstance(raw, dict) else None
    if tower is None:
        return sources
    logger.warning("%s holds no vision tower; its weights are read from %s", folder, tower)
    return sources + [
        WeightSource(file=file, only="vision_model.", prefix=TOWER_PREFIX) for file in weight_files(tower)
    ]


def tower_tensors(folder: Path, sources: Iterable[WeightSource]) -> Iterator[tuple[str, Tensor]]:
    """The vision tower's parameters, views of the mapped files.

    Raises:
        InputError: while iterating, if there are none.
    """
    seen = False
    for source in sources:
        for key, tensor in source.tensors():
            if key.startswith(TOWER_PREFIX):
                seen = True
                yield key, tensor
    if not seen:
        raise InputError(
            f"{folder}: no vision tower in its weights, nor at mm_vision_tower; give a complete checkpoint"
        )


def check_tower(folder: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Refuse a tower whose tensors have not exactly the names and shapes of `expected`.

    Raises:
        InputError: names the first difference.
    """
    for key in sorted(found.keys() | expected.keys()):
        shapes = [tuple(tensors[key].shape) if key in tensors else "none" for tensors in (found, expected)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{folder}: {key} of the vision tower has shape {shapes[0]}, config.json says {shapes[1]}; take "
                "config.json and weights from the same checkpoint"
            )


def check_sources(folder: Path, sources: Iterable[WeightSource], expected: Mapping[str, Shape]) -> None:
    """Refuse weights that are not exactly `expected`.

    Raises:
        InputError: one line with every key that is missing, unknown, misshapen or duplicated; keys that differ only in
            their layer number are joined, `model.layers.{0-31}.mlp.up_proj.weight`.
    """
    found: dict[str, Shape] = {}
    problems: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for source in sources:
        for key, shape in source.shapes().items():
            if key in found:
                problems["", f" is in two files, the second {source.file.name}"].append(key)
            elif key not in expected:
                problems["unknown ", ""].append(key)
            elif shape != expected[key]:
                problems["", f" has shape {shape}, expected {expected[key]}"].append(key)
            found[key] = shape
    problems["missing ", ""] += expected.keys() - found.keys()
    if any(problems.values()):
        listed = sorted(f"{head}{key}{tail}" for (head, tail), keys in problems.items() for key in group_keys(keys))
        raise InputError(f"{folder}: weights do not fit config.json: {'; '.join(listed)}{_hint(found)}")


def _hint(found: Mapping[str, Shape]) -> str:
    if any(key.startswith(TOWER_PREFIX) for key in found):
        return "; take config.json and weights from the same checkpoint"
    return "; the checkpoint has no vision tower, so mm_vision_tower in config.json must name one with weights"
